"""Results as text for a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

UNBOUNDED = 1000  # columns where no terminal limits them: what is piped on must not be folded
NARROW = 120  # columns below which the results table leaves some metrics to the files


def say(*lines: str) -> None:
    """Write lines to stdout."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def complain(message: str, status: int = 2) -> int:
    """Write one line to stderr; return the exit status it stands for."""
    sys.stderr.write(f"mm3dad: {' '.join(message.split())}\n")
    sys.stderr.flush()
    return status


def count(number: int, noun: str) -> str:
    """Return "1 part", "2 parts"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, words: int = 1) -> None:
    """Print a table; the first `words` columns hold words, the others numbers. The last row is set apart when it is a mean."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        # an identifier that is cut can no longer be typed
        table.add_column(column, justify="left" if number < words else "right", overflow="fold", no_wrap=number == 0)
    for number, row in enumerate(rows):
        if number and row[0] == "mean":
            table.add_section()
        table.add_row(*row, style="bold" if row[0] == "mean" else None)
    Console(file=sys.stdout, width=_width(), markup=False, highlight=False).print(table)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUNDED


def print_results(result: dict[str, Any]) -> None:
    """Print an evaluation, one table per number of shots."""
    from mm3dad.run.table import tables_of

    seeds = result["protocol"]["seeds"]
    interval = "95 % interval" if len(seeds) == 1 else f"95 %, seed {seeds[0]}"
    columns = ("category", "I-AUROC", interval, "I-AP", "P-AUROC", "AUPRO@0.3", "AUPRO@0.01", "ms p50", "bank MB", "fit s")
    for shots, table in tables_of(result).items():
        rows = [_result_row(name, row) for name, row in (*table["categories"].items(), ("mean", table["mean"]))]
        fitted = "all good parts" if shots == "full" else f"{shots} good parts"
        if result["protocol"].get("zero_shot"):
            fitted = "nothing (zero-shot)"
        if result["protocol"].get("auxiliary"):
            fitted = _name_auxiliary(result["protocol"]["auxiliary"])
        spread = f", mean ± std over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
        kind = ", transductive: sees the test set as a whole" if result["protocol"]["transductive"] else ""
        title = f"{result['method']} on {result['dataset']['name']}: {result['protocol']['models']}, fitted on {fitted}{spread}{kind}"
        shown = [n for n, name in enumerate(columns) if _width() >= NARROW or name not in (interval, "I-AP", "P-AUROC")]
        print_table([columns[n] for n in shown], [[row[n] for n in shown] for row in rows], title)
    reasons = {f"{run['category']}: {reason}" for run in result["runs"] for reason in run["metrics"].get("notes", {}).values()}
    say(*(f"not defined for {reason}" for reason in sorted(reasons)))


def _name_auxiliary(sets: dict[str, Any]) -> str:
    """Name the set of other products that a zero-shot method was fitted on."""
    names = {f"{one['dataset']} ({', '.join(one['categories'])})" for one in sets.values()}
    if len(names) == 1:
        return f"the auxiliary set {names.pop()}"
    return f"the auxiliary sets of {', '.join(sorted({one['dataset'] for one in sets.values()}))}: all categories but the one under test"


def _result_row(name: str, row: dict[str, Any]) -> list[str]:
    interval = row.get("image_auroc_ci")
    return [
        name,
        _number(row["image_auroc"], 3, row["std"]["image_auroc"]),
        f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "",
        *(_number(row[metric], 3) for metric in ("image_ap", "pixel_auroc")),
        *(_number(row[metric], 3, row["std"][metric]) for metric in ("aupro_30", "aupro_01")),
        _number(row["predict_ms_p50"], 0),
        _number(None if row["bank_bytes"] is None else row["bank_bytes"] / 1e6, 1),
        _number(row["fit_seconds"], 1),
    ]


def _number(value: float | None, digits: int, spread: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (f" ±{spread:.{digits}f}" if spread is not None else "")


def format_options(method: str) -> str:
    """Return the options of a method, one line each."""
    from mm3dad.run.catalog import list_options

    rows = [(f"{row['name']}={_value(row['default'])}", row["help"]) for row in list_options(method)]
    width = max((len(name) for name, _ in rows), default=0)
    return f"options of {method} (--set key=value), with defaults:\n" + "".join(f"  {name:<{width}}  {text}\n" for name, text in rows)


def _value(value: Any) -> str:
    """Write a default as --set takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def tabulate_costs(result: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Return columns, rows and title of what `run.benchmark` measured."""
    columns = ["", "p50", "p95", "p99"]
    rows = [[f"{name}, ms", *(f"{result[name][share]:.1f}" for share in columns[1:])] for name in ("read_ms", "predict_ms", "total_ms")]
    rows = [[name.replace("_ms,", ","), *rest] for name, *rest in rows]
    sizes = (
        ("load, s", result["load_seconds"], 1),
        ("bank, MB", result["bank_bytes"], 1e6),
        ("model on disk, MB", result["model_bytes"], 1e6),
    )
    rows += [[name, f"{value / unit:.1f}", "", ""] for name, value, unit in (*sizes, ("peak memory, MB", result["peak_rss_bytes"], 1e6))]
    machine = result["machine"]
    threads, cores = count(machine["torch_threads"], "thread"), count(machine["cores"], "core")
    return columns, rows, f"{result['method']} on {machine['device']}, {threads} of {cores}"


def describe_drift(result: dict[str, Any]) -> list[str]:
    """Return what `run.drift` found, as lines."""

    def rate(row: dict[str, Any], what: str, meant: str) -> str:
        low, high = row["interval"]
        share = f"{row['count']} of {row['of']} parts {what}: {row['share']:.2%}, 95 % interval {low:.2%} to {high:.2%}"
        return f"{share}; {meant} {row['calibrated']:.2%}{', which is exceeded' if row['exceeded'] else ''}"

    lines = [f"{result['parts']} parts beside {result['normals']} normal samples"]
    lines.append(rate(result["outside"], "lie outside what the model was fitted on", "calibrated for at most"))
    if result["defective"] is not None:
        lines.append(rate(result["defective"], "are called defective", "good parts alone are meant to alarm at"))
    if (recording := result["recording"]) is not None:
        verdict = "other than that" if recording["moved"] else "as that"
        odds = f"p-value {recording['p_value']:.2g}, calibrated for {recording['calibrated']:.2%} of such runs"
        lines.append(f"the recording (light, focus, measured points, distance, noise) is {verdict} of the normal samples: {odds}")
    for name, row in result["quantities"].items():
        low, high = row["interval"]
        verdict = "moved" if row["moved"] else "as before"
        chance = f"a part exceeds a normal sample in {row['exceeds']:.1%} of the pairs (interval {low:.1%} to {high:.1%})"
        lines.append(f"{name}: {verdict}; {chance}, median {row['median_parts']:.4g}, normal {row['median_normal']:.4g}")
    return lines


def describe_point(result: dict[str, Any]) -> list[str]:
    """Return what `run.calibrate` chose and what it promises, as lines."""
    low, high = result["interval"]
    lines = [f"threshold {result['threshold']:.4g}, from {result['normals']} good parts of {result['split']}"]
    if result["rule"] == "f1":
        lines.append(f"best F1: finds {result['recall']:.1%} of the defective parts, {result['false_alarms']:.1%} false alarms")
        lines.append(f"  on the parts that chose it; 95 % interval of the false alarms: {low:.2%} to {high:.2%}")
    else:
        average = f"false alarms: {result['false_alarms']:.2%} of good parts on average"
        lines.append(f"{average}; with this threshold {low:.2%} to {high:.2%} (95 % interval)")
        asked, sure = result["asked"]["false_alarms"], result["normals_needed_confident"]
        lines.append(f"  {asked:.2%} takes {result['normals_needed']} good parts on average, {sure} to be 95 % sure")
    if result["pixel_threshold"] is not None:
        ends = result["pixel_interval"]
        interval = f"; 95 % interval: {ends[0]:.3%} to {ends[1]:.3%}" if ends else ""
        lines.append(f"pixel threshold {result['pixel_threshold']:.4g}: {result['pixel_area']:.3%} of a good part is above it{interval}")
    if result["split"] == "test":
        lines.append("chosen on the test split: figures of this model on it flatter from now on")
    return [*lines, f"kept in {result['folder']}"]


def print_catalog(kind: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print one of the lists of `run.catalog`."""
    if not rows:
        say(f"{kind}: none")
        return
    hidden = ("options",) if kind == "methods" else ()
    columns = [name for name in rows[0] if name not in hidden]
    print_table(columns, [[_cell(row[name]) for name in columns] for row in rows], kind, words=len(columns))
    if kind == "methods":
        say("`mm3dad fit METHOD --help` lists the options of a method")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
