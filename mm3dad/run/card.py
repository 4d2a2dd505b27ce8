"""The model card of a saved model: what it is, what it was fitted on, what it promises, and the commands that repeat it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm3dad import __version__, files
from mm3dad.run._arguments import list_versions
from mm3dad.run.catalog import list_options

if TYPE_CHECKING:
    from mm3dad.methods import Detector


def write_card(detector: Detector, fitted: dict[str, Any], repo: str, licence: str) -> str:
    """Return the card as Markdown with the header that the hub reads.

    Args:
        detector: loaded.
        fitted: content of its fit.json; {} where it has none.
        repo: OWNER/NAME where it will lie.
        licence: identifier of the model's licence.
    """
    changed = list_changes(detector)
    made = f"{detector.bank_bytes / 1e6:.1f} MB of tensors, made by mm3dad {fitted.get('mm3dad', __version__)}"
    parts = [
        _header(detector, fitted, licence),
        f"# {repo.split('/')[1]}\nA model of `{detector.name}` ({_summary(detector)}), {made}.",
        "## Use\n```\npip install mm3dad\n"
        f'mm3dad pull {repo} model\nmm3dad predict model PARTS --out predictions\n```\nor in Python `mm3dad.load("hub:{repo}")`.',
        f"## Data\n{_describe_data(fitted)}",
        f"## Threshold\n{_describe_point(detector)}",
        "## Configuration\n" + (_table(("option", "value"), changed.items()) if changed else "All options have their defaults."),
        f"## Made by\n```\n{write_command(detector, fitted)}\n```" if fitted else "",
        f"## Weights\n{_describe_weights(detector)}",
        "## Versions\n" + _table(("package", "version"), (fitted.get("versions") or list_versions()).items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def list_changes(detector: Detector) -> dict[str, Any]:
    """Return the options that differ from their defaults, seed and device aside."""
    defaults = {row["name"]: row["default"] for row in list_options(detector.name)}
    return {name: getattr(detector.config, name) for name in defaults if getattr(detector.config, name) != defaults[name]}


def list_local_paths(config: Any) -> list[str]:
    """Return the names of options that hold a path which is there on this machine, and so not on another."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return [name for name, value in values.items() if isinstance(value, str) and "/" in value and Path(value).exists()]


def write_command(detector: Detector, fitted: dict[str, Any]) -> str:
    """Return the command line that fits this model again.

    Args:
        detector: loaded.
        fitted: content of its fit.json.
    """
    words = ["mm3dad", "fit", detector.name, "--dataset", fitted["dataset"]["name"], "--root", fitted["dataset"]["root"]]
    for name in fitted.get("categories", []):
        words += ["--category", name]
    words += ["--multiclass"] * (len(fitted.get("categories", [])) > 1)
    words += ["--shots", str(fitted["shots"])] if fitted.get("shots") else []
    words += ["--seed", str(fitted.get("seed", 0)), "--out", fitted["folder"]]
    if other := fitted.get("auxiliary"):
        words += ["--auxiliary", f"{other['dataset']}:{other['root']}:{','.join(other['categories'])}"]
    for name, value in {**list_changes(detector), **fitted["dataset"].get("options", {})}.items():
        words += ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"]
    return shlex.join(words)


def _header(detector: Detector, fitted: dict[str, Any], licence: str) -> str:
    tags = ["anomaly-detection", "industrial-inspection", "mm3dad", detector.name, *detector.needs.inputs]
    fields = {"library_name": "mm3dad", "license": licence, "pipeline_tag": "image-segmentation", "tags": tags}
    if fitted:
        fields["tags"] = [*tags, fitted["dataset"]["name"]]
    return f"---\n{files.format_yaml(fields)}---"


def _summary(detector: Detector) -> str:
    return (type(detector).__doc__ or detector.name).strip().partition("\n")[0].rstrip(".")


def _describe_data(fitted: dict[str, Any]) -> str:
    if not fitted:
        return "Fitted from Python; the samples were not noted."
    shots = "all there were" if fitted.get("shots") is None else f"{fitted['shots']} chosen per category"
    names = ", ".join(map(str, fitted.get("categories", [])))
    text = f"{len(fitted.get('samples', []))} samples of {names} from `{fitted['dataset']['name']}` ({shots})."
    if other := fitted.get("auxiliary"):
        text += f" Learned on {other['samples']} labelled samples of other products: {', '.join(other['categories'])}."
    return text + f" sha256 over sizes and times of the files: `{fitted.get('data_sha256', '')}`."


def _describe_point(detector: Detector) -> str:
    point = detector.operating_point
    if point is None:
        return "Not calibrated: the method's own threshold, which promises no rate. `mm3dad calibrate` chooses one."
    low, high = point.interval
    text = (
        f"Calibrated by `mm3dad calibrate` ({point.rule}) on {len(point.normal_scores)} held-out good parts: {point.false_alarms:.1%} "
        f"false alarms on good parts (95 % interval {low:.1%} to {high:.1%}), image score above {point.threshold:.4g}."
    )
    if point.recall is not None:
        text += f" {point.recall:.1%} of the defective samples that chose it are found."
    if point.pixel_area is not None:
        text += f" Pixels: map above {point.pixel_threshold:.4g}, {point.pixel_area:.2%} of a good part."
    return text


def _describe_weights(detector: Detector) -> str:
    if not detector.weights:
        return "No pretrained weights."
    rows = [(row.get("name"), row.get("licence"), f"`{row['sha256'][:16]}`" if row.get("sha256") else "") for row in detector.weights]
    return "They are not in the repository; mm3dad finds them where it is installed.\n\n" + _table(("weights", "licence", "sha256"), rows)


def _table(head: tuple[str, ...], rows: Any) -> str:
    def line(cells: Any) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *map(line, rows)])
