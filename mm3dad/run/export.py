"""Write the extractors of a saved model as ONNX; a file that disagrees with torch is not written. The bank stays outside."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mm3dad
from mm3dad import files
from mm3dad.errors import MissingPackageError, ModelError, one_line
from mm3dad.methods import load_detector
from mm3dad.nets.graph import Graph
from mm3dad.run._arguments import list_versions, require_writable
from mm3dad.run.progress import track_stages

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # of the largest value of an output: float32 sums in another order, far below what moves a score
CHECKS = 2  # inputs compared beside the one the graph was traced with


def export_model(folder: str | Path, out: str | Path, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Write `rgb.onnx` and, where the points have a network, `xyz.onnx`, with `export.json` that says what goes in and comes out.

    Args:
        folder: a saved model.
        out: folder to write to.
        size: (H, W) of the samples, which fixes the shape of the input; the square of the model's `image_size` when None.

    Returns:
        The content of export.json.

    Raises:
        ConfigError: the method has nothing to export.
        MissingPackageError: onnx, onnxruntime or onnxscript is missing.
        ModelError: no model, a network that ONNX cannot express, or a file that disagrees with torch.
        StorageError: `out` cannot be written.
    """
    _require_packages()
    detector = load_detector(folder)
    side = int(getattr(detector.config, "image_size", 224))
    graphs = detector.graphs(size or (side, side))
    out = require_writable(out)
    rows = []
    with track_stages("export") as progress:
        for number, graph in enumerate(graphs):
            progress(graph.name, number, len(graphs))
            rows.append(_write_graph(graph, out))
    result = {
        "format": 1,
        "mm3dad": mm3dad.__version__,
        "method": detector.name,
        "model": str(Path(folder).resolve()),
        "size": list(size or (side, side)),
        "graphs": rows,
        "weights": detector.weights,
        "versions": list_versions(),
    }
    files.write_json(out / "export.json", result)
    return result


def _require_packages() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"export needs {', '.join(missing)}, not installed; pip install 'mm3dad[onnx]'")


def _write_graph(graph: Graph, out: Path) -> dict[str, Any]:
    content = trace(graph)
    difference = compare(graph, content)
    path = files.write_bytes(out / f"{graph.name}.onnx", content)
    return {
        "file": path.name,
        "sha256": files.sha256_file(path),
        "bytes": len(content),
        "inputs": {name: list(value.shape) for name, value in graph.inputs.items()},
        "outputs": list(graph.outputs),
        **graph.note,
        "largest_difference": difference,
        "tolerance": TOLERANCE,
    }


def trace(graph: Graph) -> bytes:
    """Return the graph as ONNX.

    Raises:
        ModelError: it has an operation that ONNX cannot express.
    """
    buffer = io.BytesIO()
    try:
        program = torch.onnx.export(
            graph.net,
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamo=True,
            verbose=False,
        )
        program.save(buffer)
    except Exception as error:  # the exporter fails in many types of its own
        reason = one_line(error)
        raise ModelError(
            f"the {graph.name} network cannot be written as ONNX ({type(error).__name__}: {reason}); use another backbone"
        ) from error
    return buffer.getvalue()


def compare(graph: Graph, content: bytes) -> float:
    """Return the largest difference between torch and onnxruntime, as a share of the largest value of the output it is in.

    Raises:
        ModelError: it is above `TOLERANCE`, or an output has another shape.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for number in range(CHECKS + 1):
        inputs = graph.inputs if number == 0 else _vary(graph.inputs, number)
        found = session.run(list(graph.outputs), {name: value.numpy() for name, value in inputs.items()})
        with torch.inference_mode():
            expected = graph.net(*inputs.values())
        for name, mine, theirs in zip(graph.outputs, expected, map(torch.from_numpy, found), strict=True):
            if mine.shape != theirs.shape:
                raise ModelError(f"{graph.name}.onnx gives {name} as {tuple(theirs.shape)}, torch as {tuple(mine.shape)}; not written")
            scale = mine.abs().max().clamp_min(torch.finfo(mine.dtype).tiny)
            share = float((mine - theirs).abs().max() / scale)
            if not share <= TOLERANCE:  # NaN is no agreement
                raise ModelError(
                    f"{graph.name}.onnx disagrees with torch in {name} by {share:.2g} of its largest value, more than {TOLERANCE}; "
                    "not written, use another backbone or other versions of onnx and onnxruntime"
                )
            largest = max(largest, share)
    return largest


def _vary(inputs: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Shuffle the values of each input, so that they stay in the range of the example."""
    generator = torch.Generator().manual_seed(seed)
    return {name: value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value) for name, value in inputs.items()}
