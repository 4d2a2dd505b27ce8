"""The demo: synthetic parts, the flagship, a table, a report, a 3D page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm3dad import files
from mm3dad.cli.terminal import print_results, say

CATEGORIES = ("assembled_part", "cookie", "gasket")
VALIDATION, GOOD, DEFECT = 4, 10, 2


def run_demo(
    out: str | Path,
    *,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    size: int = 400,
    train: int = 20,
    overwrite: bool = False,
    json_path: str | Path | None = None,
    method: str = "duet",
) -> dict[str, Any]:
    """Make data, fit and evaluate, and show what was found; a second call reuses data and results.

    Args:
        out: gets data/, results/, report.html, cloud.html and picture.png.
        categories: synthetic categories; three of different character when None.
        seed: of data and detector.
        size: height and width of the samples in pixels.
        train: good parts per category to fit on.
        overwrite: evaluate again although results are there.
        json_path: a copy of the results.
        method: what to fit.

    Returns:
        The evaluation's result.
    """
    from mm3dad.run.evaluate import evaluate
    from mm3dad.run.prepare import prepare_synthetic
    from mm3dad.view import view_path, write_report

    out = Path(out)
    names = list(categories or CATEGORIES)
    counts = {"train": train, "validation": VALIDATION, "good": GOOD, "defect": DEFECT}
    data = prepare_synthetic(out / "data", categories=names, seed=seed, size=size, counts=counts)
    say(f"data: {data}")
    result = evaluate(
        method, "synthetic", data, categories=names, seeds=[seed], out=out / "results", json_path=json_path, overwrite=overwrite
    )
    print_results(result)
    report = write_report(out / "results", out / "report.html")
    (page,) = view_path(out / "results", html=out / "cloud.html")
    picture = draw_found(out / "results", out / "picture.png")
    category = names[0]
    say(
        f"report with heat maps: {report}",
        f"3D page of a defect:   {page}",
        f"side by side:          {picture}",
        f"JSON and CSV:          {out / 'results'}",
        "next, a model of your own and its scores:",
        f"  mm3dad fit {method} --dataset synthetic --root {data} --category {category} --out {out / 'model'}",
        f"  mm3dad predict {out / 'model'} {data / category / 'test'} --out {out / 'predictions'}",
    )
    return result


def draw_found(folder: Path, path: Path) -> Path:
    """Draw RGB, cloud, score map and ground truth of the surest defect of each category below each other."""
    from mm3dad.view.outputs import read_maps, read_output, read_row_sample
    from mm3dad.view.panel import panel, stack_panels

    panels = []
    for run in read_output(folder).first_runs():
        defective = [row for row in run.rows if row.label == 1] or run.rows
        row = max(defective, key=lambda row: row.score)
        sample = read_row_sample(row)
        if sample is not None:
            panels.append(panel(sample, read_maps(row), score=row.score, threshold=row.threshold))
    return files.write_with(path, lambda temporary: stack_panels(panels).save(temporary, format="PNG"))
