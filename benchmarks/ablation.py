"""Switch the parts of `duet` off (or on) in turn and print what each is worth.

    python benchmarks/ablation.py --root data/synthetic --out ablation [--seeds 0,1,2] [--category C]... [--only NAME]...

Features are computed once and kept in OUT/features; every row is an ordinary `mm3dad evaluate`, resumable, with its own JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from mm3dad import files
from mm3dad.run.evaluate import evaluate

SWITCHES: dict[str, dict[str, Any]] = {
    "duet (defaults)": {},
    "grouping on": {"grouping": True},
    "aggregation of patches on": {"aggregate": True},
    "aggregation of groups on": {"aggregate_points": True},
    "search by the global bank": {"global_bank": True},
    "the same and enhancement": {"global_bank": True, "enhance": True},
    "re-scoring on": {"rescore": True},
    "scale off": {"scale": False},
    "local scale off": {"local_scale": 0.0},
    "RGB only": {"modalities": ("rgb",)},
    "3D only": {"modalities": ("xyz",)},
}


def main() -> None:
    """Run the rows that are asked for and write OUT/ablation.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="synthetic tree made by `mm3dad prepare synthetic`")
    parser.add_argument("--out", required=True, help="folder for results and features")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--category", action="append")
    parser.add_argument("--only", action="append", choices=list(SWITCHES), help="run some of the rows only")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    lines = ["| setting | image AUROC | spread over seeds | AUPRO@0.3 | spread over seeds |", "|---|---|---|---|---|"]
    for name in arguments.only or SWITCHES:
        result = evaluate(
            "duet",
            "synthetic",
            arguments.root,
            categories=arguments.category,
            seeds=seeds,
            options={**SWITCHES[name], "feature_cache": str(out / "features")},
            out=out / name.replace(" ", "_").replace("(", "").replace(")", ""),
        )
        means = [mean_over_categories(result["runs"], seed) for seed in seeds]
        cells = [
            f"{value:.4f}"
            for metric in ("image_auroc", "aupro_30")
            for value in (fmean(row[metric] for row in means), pstdev(row[metric] for row in means))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    files.write_text(out / "ablation.md", "\n".join(lines) + "\n")


def mean_over_categories(runs: list[dict[str, Any]], seed: int) -> dict[str, float]:
    """Return the macro mean of one seed's runs."""
    rows = [run["metrics"] for run in runs if run["seed"] == seed]
    return {metric: fmean(row[metric] for row in rows) for metric in ("image_auroc", "aupro_30")}


if __name__ == "__main__":
    main()
