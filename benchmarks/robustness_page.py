"""The page of the robustness benchmark: a table per fault and its curves, from the scores that were kept."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import mm3dad
from benchmarks.plots import draw_panels
from mm3dad import files
from mm3dad.metrics import auroc
from mm3dad.scoring.calibrate import place_for_rate
from mm3dad.scoring.outside import judge_run
from mm3dad.scoring.promise import order_statistic_interval, proportion_interval

Titles = Mapping[str, tuple[str, Sequence[float], Sequence[str]]]
HEAD = (
    "| fault | method | image AUROC | change | good parts called defective | and not called outside | good parts called outside "
    "| runs that moved | false alarms: kept / flagged / run flagged / neither | refused |"
)
INTRODUCTION = """# Robustness
What worse sensors do to the scores, and whether `duet` says so. Each method is fitted once on good parts as they are; then test parts are
degraded in memory (`mm3dad/data/degrade.py`), good and defective alike. Seeded, no file is written, no setting is chosen here.
`python -m benchmarks.robustness --root data/synthetic --out robustness --page docs/robustness.md` measures and writes this page
(`--category`, `--methods` and `--only` for a part; it goes on where it was interrupted).
"""
NOTES = """
- *Called outside*: the out-of-distribution flag, `Prediction.is_outside`. Methods without one show `-`. Where good parts are called
  defective because the sensor drifts, the flag is what tells; the column *and not called outside* counts those it missed.
- *Runs that moved* counts categories whose good parts, all together, were recorded otherwise than the normal samples: light, colour, focus,
  measured points, distance or noise by a rank test at the rate of the flag (5 % of undegraded runs may be called so), which is what
  `mm3dad drift` says of a run. A drift that every single part could show by chance is seen by many together.
- *False alarms: kept / flagged / run flagged / neither* counts categories. Kept: the false alarms agree with what the threshold, chosen on
  so few normal parts, can promise (the 95 % interval of their share reaches into the 95 % interval of the calibrated rate; with 48 parts,
  8 of validation and 40 held out in training, that goes up to 7.4 %, with 8 to 37 %). Flagged: they do not, and more good parts are called
  outside than calibrated, again by the interval. Run flagged: they do not, single parts are not called outside too often, but the run is
  said to have moved. Neither: nothing warns.
- The change is that of the mean image AUROC against the same parts undegraded. A part that a method refuses (it says why, in one line) is
  left out of the AUROC and counted in the last column.
- To reach, by `duet` over all categories: the three faults together cost at most 0.03 image AUROC, 10 % of defects among the training parts
  at most 0.05.
- Contaminated training sets keep their number of good parts; the defects among them are taken from the test set, the same at every share,
  and the rest of it is judged.
- An occluder may hide a defect, and is one itself: nothing tells a finger in the picture from a foreign body on the part.
"""


def _is_good(row: Mapping[str, Any]) -> bool:
    return row["error"] is None and row["label"] == 0


def _summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    judged = [row for row in rows if row["error"] is None]
    good = [row for row in judged if _is_good(row)]
    labels = torch.tensor([row["label"] for row in judged])
    both = len(set(labels.tolist())) == 2
    return {
        "auroc": auroc(torch.tensor([row["score"] for row in judged], dtype=torch.float64), labels) if both else None,
        "alarms": [row["is_anomaly"] for row in good],
        "outside": [row["is_outside"] for row in good],
        "refused": len(rows) - len(judged),
        "parts": len(rows),
    }


def judge_promise(rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> str | None:
    """Say of one category under one fault whether its false alarms are those calibrated ("kept"), else which flag tells.

    The flag of single parts comes first ("flagged"), then that of the run ("run flagged").

    Args:
        rows: of the condition.
        content: of the file, with the number of normal samples that set the threshold; None comes back where it is not known.
    """
    config = content["identity"].get("config", {})
    good = [row for row in rows if _is_good(row) and row["is_anomaly"] is not None]
    if not good or not content.get("normals") or "false_alarms" not in config:
        return None
    place = place_for_rate(content["normals"], config["false_alarms"])
    highest = order_statistic_interval(place, content["normals"])[1]
    if proportion_interval(sum(row["is_anomaly"] for row in good), len(good))[0] <= highest:
        return "kept"
    told = [row["is_outside"] for row in good if row["is_outside"] is not None]
    if told and proportion_interval(sum(told), len(told))[0] > config["outside_rate"]:
        return "flagged"
    return "run flagged" if has_moved(good, content) else "neither"


def has_moved(rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> bool | None:
    """Say whether these parts together were recorded otherwise than the normal samples, as `mm3dad drift` does; None: nobody knows."""
    normals = content.get("recording") or {}
    names = [name for name in normals if rows and all(name in row.get("recording", {}) for row in rows)]
    if not names:
        return None
    parts = {name: [row["recording"][name] for row in rows] for name in names}
    return judge_run(parts, {name: normals[name] for name in names}, content["identity"]["config"]["outside_rate"])[1]


def _share(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known)} of {len(known)}" if known else "-"


def _read(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {method: {category: content of its file}}."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(out.glob("*/*.json")):
        content = files.read_json(path)
        found.setdefault(content["identity"]["method"], {})[content["identity"]["category"]] = content
    return found


def _line(cells: Mapping[str, Mapping[str, Any]], condition: str) -> dict[str, Any] | None:
    """Summarise one condition over the categories that have it, beside the same parts undegraded."""
    contents = {name: content for name, content in cells.items() if {condition, "clean"} <= content["rows"].keys()}
    if not contents:
        return None
    have = {name: content["rows"] for name, content in contents.items()}
    verdicts = [judge_promise(content["rows"][condition], content) for content in contents.values()]
    parts = [_summarise(rows[condition]) for rows in have.values()]
    clean = []
    for rows in have.values():
        kept = {row["id"] for row in rows[condition]}
        clean.append(_summarise([row for row in rows["clean"] if row["id"] in kept]))
    pairs = [(one["auroc"], other["auroc"]) for one, other in zip(parts, clean, strict=True) if one["auroc"] is not None]
    alarms = [flag for part in parts for flag in part["alarms"]]
    outside = [flag for part in parts for flag in part["outside"]]
    told = [flag for flag in outside if flag is not None]
    silent = [alarm and not flag for alarm, flag in zip(alarms, outside, strict=True) if alarm is not None]
    return {
        "categories": list(have),
        "auroc": fmean(one for one, _ in pairs) if pairs else None,
        "change": fmean(one - other for one, other in pairs) if pairs else None,
        "alarms": alarms,
        "silent": silent if told else [],
        "outside": outside,
        "moved": [has_moved([row for row in content["rows"][condition] if _is_good(row)], content) for content in contents.values()],
        "promise": None if None in verdicts else [verdicts.count(word) for word in ("kept", "flagged", "run flagged", "neither")],
        "refused": sum(part["refused"] for part in parts),
        "parts": sum(part["parts"] for part in parts),
    }


def write_robustness(out: Path, page: Path, titles: Titles) -> None:
    """Write the page and images/robustness.svg beside it.

    Args:
        out: holds <method>/<category>.json.
        page: a Markdown file.
        titles: for each family its title, its levels and their words.
    """
    found = _read(out)
    made = f"Made with mm3dad {mm3dad.__version__} on {datetime.date.today()}; a table says which categories it holds so far."
    lines = [INTRODUCTION + made, "", "![Image AUROC over the strength of each fault](images/robustness.svg)", ""]
    panels = []
    for family, (title, levels, words) in {"clean": ("undegraded", (), ()), **titles}.items():
        curves: dict[str, list[float | None]] = {}
        table = []
        for word, condition in zip(("clean", *words), ("clean", *(f"{family} {level:g}" for level in levels)), strict=True):
            for method, cells in found.items():
                if word == "clean":  # the first point of a curve is of the same categories as the others
                    cells = {name: cells[name] for name in _complete(cells, [f"{family} {level:g}" for level in levels])}
                line = _line(cells, condition)
                curves.setdefault(method, []).append(None if line is None else line["auroc"])
                if line is None or (word == "clean" and family != "clean"):
                    continue
                score = "-" if line["auroc"] is None else f"{line['auroc']:.3f}"
                change = "-" if line["change"] is None or family == "clean" else f"{line['change']:+.3f}"
                shares = [_share(line[name]) for name in ("alarms", "silent", "outside", "moved")]
                told = f"{line['refused']} of {line['parts']}" if line["refused"] else "none"
                promise = "-" if line["promise"] is None else " / ".join(map(str, line["promise"]))
                table.append(f"| {word} | {method} | {score} | {change} | {' | '.join(shares)} | {promise} | {told} |")
        if table:
            lines += [f"## {title[0].upper()}{title[1:]}", _categories(found, [f"{family} {level:g}" for level in levels] or ["clean"]), ""]
            lines += [HEAD, "|---" * 10 + "|", *table, ""]
        if len(words) > 1 and family != "dead" and table:
            panels.append((title, ["clean", *words], curves))
    lines += ["## How to read this", NOTES.strip()]
    files.write_text(page, "\n".join(lines) + "\n")
    files.write_text(page.parent / "images" / "robustness.svg", draw_panels(panels))


def _complete(cells: Mapping[str, Mapping[str, Any]], conditions: Sequence[str]) -> list[str]:
    return [name for name, content in cells.items() if all(condition in content["rows"] for condition in conditions)]


def _categories(found: Mapping[str, Mapping[str, Mapping[str, Any]]], conditions: Sequence[str]) -> str:
    """Say which categories a table is the mean of, method by method where they differ."""
    have = {method: _complete(cells, conditions) for method, cells in found.items()}
    told = {", ".join(names) or "none complete yet" for names in have.values()}
    if len(told) == 1:
        return f"Mean over {told.pop()}."
    return "Mean over " + "; ".join(f"{method}: {', '.join(names) or 'none complete yet'}" for method, names in have.items()) + "."
