"""Score uploads over HTTP with a warm model: `mm3dad serve`; needs the extra `serve`."""

# No `from __future__ import annotations`: FastAPI reads the annotations of the endpoints, whose types are imported only with the extra.
import base64
import contextlib
import hmac
import io
import secrets
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mm3dad import __version__, files
from mm3dad.data.single import read_sample
from mm3dad.errors import ConfigError, DataError, MissingPackageError, Mm3dadError
from mm3dad.methods import load_detector
from mm3dad.run._upload import Guard
from mm3dad.run.rows import describe_row
from mm3dad.run.warm import warm_up
from mm3dad.run.watch import require_ready, score_one

if TYPE_CHECKING:
    from torch import Tensor

    from mm3dad.methods import Detector

MAX_BYTES = 64_000_000  # of one request; RGB and float32 cloud of 1,600 x 1,600 pixels are 38 MB uncompressed
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tiff", b"MM\0*": ".tiff"}
ALLOWED = {"rgb": (".png", ".jpg"), "xyz": (".tiff",)}


def make_app(detector: "Detector", token: str, max_bytes: int = MAX_BYTES) -> Any:
    """Return the ASGI application: /health, /predict and /openapi.json. All but /health ask for the token.

    Args:
        detector: fitted or loaded; one request at a time uses it, the others wait.
        token: what `Authorization: Bearer ...` must hold.
        max_bytes: of one request's body; more is refused before it is kept.

    Raises:
        MissingPackageError: the extra is not installed.
        ConfigError: a transductive method, an empty token, a size below 1.
    """
    try:
        import python_multipart  # noqa: F401
        from fastapi import FastAPI, File, HTTPException, Query, UploadFile
    except ImportError as error:
        raise MissingPackageError(f"serve needs {error.name}; install it with pip install 'mm3dad[serve]'") from error
    require_ready(detector)
    if not token or max_bytes < 1:
        raise ConfigError(f"serve needs a token and room for a request, got a token of {len(token)} letters and {max_bytes} bytes")
    turn = threading.Lock()
    app = FastAPI(title="mm3dad", version=__version__, docs_url=None, redoc_url=None)  # the pages would load scripts from elsewhere

    @app.get("/health")
    def health() -> dict[str, str]:
        """Say that the service is up and which method it runs."""
        return {"status": "ok", "method": detector.name, "mm3dad": __version__}

    @app.post("/predict")
    def predict(
        rgb: Annotated[UploadFile | None, File(description="image, PNG or JPEG")] = None,
        xyz: Annotated[UploadFile | None, File(description="organised cloud (H, W, 3) in metres, float TIFF")] = None,
        name: Annotated[str, Query(max_length=200, description="comes back as id")] = "sample",
        map: Annotated[bool, Query(description="also return the score map as a 16-bit PNG, base64")] = False,
    ) -> dict[str, Any]:
        """Score one part."""
        bodies = {role: upload.file.read() for role, upload in (("rgb", rgb), ("xyz", xyz)) if upload is not None}
        try:
            with turn:
                return score_upload(detector, bodies, name, map)
        except Mm3dadError as error:
            raise HTTPException(422, str(error)) from error

    app.add_middleware(Guard, is_allowed=lambda given: hmac.compare_digest(given, f"Bearer {token}".encode()), max_bytes=max_bytes)
    return app


def score_upload(detector: "Detector", bodies: dict[str, bytes], name: str, wants_map: bool) -> dict[str, Any]:
    """Score what was sent. Its kind is told by its first bytes: nothing of a client's names reaches the disk.

    Raises:
        DataError: nothing was sent, a file of the wrong kind or a damaged one, a modality that the model needs is missing.
    """
    if not bodies:
        raise DataError("expected the form fields rgb (PNG or JPEG) and xyz (float TIFF), got neither; send multipart/form-data")
    needed = tuple(getattr(detector.config, "modalities", None) or detector.needs.inputs)
    if missing := [role for role in needed if role not in bodies]:
        raise DataError(f"the model needs {' and '.join(needed)}, got no {' and no '.join(missing)}; send all of them")
    with tempfile.TemporaryDirectory(prefix="mm3dad-") as folder:
        for role, body in bodies.items():
            suffix = next((suffix for head, suffix in SUFFIXES.items() if body.startswith(head)), None)
            if suffix not in ALLOWED[role]:
                raise DataError(f"{role} must be {' or '.join(kind[1:].upper() for kind in ALLOWED[role])}, got another kind; convert it")
            path = files.write_bytes(Path(folder) / f"part{suffix}", body)
        try:
            sample = read_sample(path, modalities=needed)
        except DataError as error:
            raise DataError(str(error).replace(f"{folder}/part", "the uploaded ")) from error
    outcome = score_one(detector, sample)
    if outcome.prediction is None:
        raise outcome.error or DataError("the part was not scored; report it as a bug")
    row = describe_row(sample, outcome.prediction, outcome.milliseconds)
    row = {key: value for key, value in row.items() if key not in ("paths", "file", "label", "defect")}
    return {**row, "id": name, "size": list(sample.size), **(encode_map(outcome.prediction.map) if wants_map else {})}


def encode_map(values: "Tensor") -> dict[str, Any]:
    """Return a score map (H, W) as a base64 PNG of 16 bits: score = pixel * map_step."""
    import numpy as np
    from PIL import Image

    array = values.detach().cpu().double().numpy()
    step = max(float(array.max()), 1e-12) / 65535
    buffer = io.BytesIO()
    Image.fromarray((array / step).round().clip(0, 65535).astype(np.uint16)).save(buffer, "PNG", compress_level=1)
    return {"map_png": base64.b64encode(buffer.getvalue()).decode(), "map_step": step}


def read_token(path: str | Path) -> str:
    """Return the token that a file holds, so that it stands in no list of processes.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read a token from {path}: {getattr(error, 'strerror', error)}; check --token-file") from error
    if not token:
        raise ConfigError(f"expected a token in {path}, the file is empty; write one line into it")
    return token


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the port is in use, or there is no such address here.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from error


def make_server(app: Any) -> Any:
    """Return a uvicorn server for `make_app`: `.run(sockets=[listen(...)])` serves until `.should_exit` is set."""
    try:
        import uvicorn
    except ImportError as error:
        raise MissingPackageError(f"serve needs {error.name}; install it with pip install 'mm3dad[serve]'") from error
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))


def serve_model(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_bytes: int = MAX_BYTES,
    on_ready: Any = None,
) -> None:
    """Serve a saved model until interrupted.

    Args:
        folder: a saved model.
        host: address to listen on; the default is reachable from this machine only.
        port: 0 takes a free one.
        token: what clients must send; made up when None.
        max_bytes: of one request.
        on_ready: called with (url, token) once clients can connect.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: as `make_app` and `listen`.
        MissingPackageError: the extra is not installed.
    """
    token = token if token is not None else secrets.token_urlsafe(24)
    detector = load_detector(folder)
    server = make_server(make_app(detector, token, max_bytes))
    with listen(host, port) as connection, contextlib.suppress(KeyboardInterrupt):  # how a person ends it, and no failure
        warm_up(detector)
        if on_ready is not None:
            on_ready(f"http://{host}:{connection.getsockname()[1]}", token)
        server.run(sockets=[connection])
