"""Share saved models through the Hugging Face hub: `mm3dad push`, `mm3dad pull`, `mm3dad.load("hub:owner/name")`."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from mm3dad import __version__, files
from mm3dad.errors import ConfigError, DataError, ModelError, StorageError, one_line
from mm3dad.methods import load_detector
from mm3dad.run._arguments import require_writable
from mm3dad.run._lock import held
from mm3dad.run.card import list_local_paths, write_card

TENSORS = "tensors-*.safetensors"
TAKEN = ("model.json", "fit.json", TENSORS)  # nothing else of a repository is fetched: no code, no pickle
LOGIN = "run `hf auth login`, or set HF_TOKEN"


def push_model(folder: str | Path, repo: str, *, public: bool = False, licence: str = "other") -> dict[str, Any]:
    """Upload a saved model with a generated model card, all files in one commit.

    The model is loaded before, so that nothing broken is shared. Of `fit.json` goes what describes the model; folders of this machine stay
    behind, and pictures and clouds too. Tensors of an earlier push are removed from the newest revision.

    Args:
        folder: a saved model.
        repo: OWNER/NAME; made where it is not there.
        public: whether a repository that is made now can be seen by everyone; one that is there keeps what it has.
        licence: identifier of the model's licence for the card, such as "mit"; "other" says that none was chosen.

    Returns:
        repo, revision (commit), url, files, and names of options that hold a path of this machine.

    Raises:
        ModelError: the folder is no model.
        ConfigError: the name is none of a repository, no token, or the token may not write there.
        StorageError: the hub cannot be reached or does not take the upload.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    folder = Path(folder)
    detector = load_detector(folder)
    repo, revision = _split(repo)
    if revision is not None:
        raise ConfigError(f"push writes the newest revision of {repo}, got @{revision}; leave it out")
    if get_token() is None:
        raise ConfigError(f"no token of the hub, which an upload needs; {LOGIN} to one that may write")
    fitted = _read_fit(folder)
    tensors = _tensors(folder)
    content: dict[str, bytes | Path] = {
        "README.md": write_card(detector, fitted, repo, licence).encode(),
        "model.json": folder / "model.json",
        tensors: folder / tensors,
    }
    if fitted:
        content["fit.json"] = (files.format_line(fitted) + "\n").encode()
    with _explained(repo):
        hub = HfApi(library_name="mm3dad", library_version=__version__)
        hub.create_repo(repo, private=not public, exist_ok=True)
        there = set(hub.list_repo_files(repo))
        stale = [name for name in there if PurePath(name).match(TENSORS) and name != tensors]
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=value) for name, value in content.items()]
        removed = [CommitOperationDelete(path_in_repo=name) for name in stale]
        commit = hub.create_commit(repo, [*added, *removed], commit_message=f"{detector.name} model, mm3dad {__version__}")
    url = f"{hub.endpoint}/{repo}"
    return {"repo": repo, "revision": commit.oid, "url": url, "files": sorted(content), "local_paths": list_local_paths(detector.config)}


def fetch_model(repo: str) -> Path:
    """Return a folder with the model of a repository; fetched files stay in the hub's cache, so that a second call works without a network.

    Args:
        repo: OWNER/NAME, or OWNER/NAME@REVISION (branch, tag or commit).

    Raises:
        ConfigError: the name is none, there is no such repository or revision, or the token may not read it.
        ModelError: the repository holds no model.
        StorageError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repo, revision = _split(repo)
    with _explained(repo):
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(TAKEN), library_name="mm3dad", library_version=__version__)
        )
    if not (folder / "model.json").is_file():
        raise ModelError(f"{repo} on the hub holds no saved model (model.json); name a repository that `mm3dad push` made")
    return folder


def pull_model(repo: str, out: str | Path) -> dict[str, Any]:
    """Write the model of a repository into a folder, after it was loaded from the hub's cache, which checks its sha256.

    Args:
        repo: as `fetch_model` takes it.
        out: folder of the model; one that is there is replaced, whole or not at all.

    Returns:
        repo, revision (commit), folder, method, files.

    Raises:
        ConfigError, StorageError: as `fetch_model`; `out` cannot be written.
        ModelError: the repository holds no model, a damaged one, or one of a newer format.
    """
    out = require_writable(out)
    source = fetch_model(repo)
    detector = load_detector(source)
    tensors = _tensors(source)
    described = ["fit.json"] if (source / "fit.json").is_file() else []
    names = [tensors, *described, "model.json"]  # the last one makes it a model
    with held(out):
        for name in names:
            files.write_with(out / name, partial(shutil.copyfile, source / name))
        for stale in out.glob(TENSORS):
            if stale.name != tensors:
                stale.unlink()
    return {"repo": repo, "revision": source.name, "folder": str(out), "method": detector.name, "files": names}


def _split(repo: str) -> tuple[str, str | None]:
    name, _, revision = repo.partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"a repository of the hub is OWNER/NAME, got {repo!r}; e.g. acme/cookie-duet")
    return name, revision or None


def _read_fit(folder: Path) -> dict[str, Any]:
    """Return fit.json without the folders of this machine; {} for a model that was saved from Python."""
    if not (folder / "fit.json").is_file():
        return {}
    row = files.read_json(folder / "fit.json")
    if not isinstance(row, dict) or not isinstance(row.get("dataset"), dict):
        raise DataError(f"{folder / 'fit.json'} does not describe a model; fit again, or remove it")
    row["folder"] = Path(str(row.get("folder", folder))).name
    for part in (row["dataset"], row.get("auxiliary")):
        if isinstance(part, dict) and "root" in part:
            part["root"] = Path(str(part["root"])).name
    return row


def _tensors(folder: Path) -> str:
    return Path(str(files.read_json(folder / "model.json")["tensors"]["file"])).name


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the hub's errors into one line each with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a repository ({one_line(error)}); e.g. acme/cookie-duet") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{repo} has no such revision; leave @REVISION out, or name a branch, tag or commit that is there") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 403:
            raise ConfigError(
                f"the hub refuses {repo} with this token (403); {LOGIN} to one that may, or use a name of your own"
            ) from error
        if status in (401, 404):
            raise ConfigError(
                f"the hub has no {repo}, or hides it from you ({status}); check the name, or {LOGIN} to see private ones"
            ) from error
        raise StorageError(f"the hub answers {status} for {repo} ({one_line(error)}); try again later") from error
    except (errors.HTTPError, OSError, json.JSONDecodeError) as error:  # no answer, or one of somebody else
        raise StorageError(
            f"the hub cannot be reached for {repo} ({one_line(error)}); check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from error
    except ValueError as error:  # the hub has read the card's header
        raise ConfigError(f"the hub does not take the model card of {repo} ({one_line(error)}); give another --licence") from error
