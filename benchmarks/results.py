"""Evaluate all methods on all data that are there, and write the results page.

    python -m benchmarks.results --synthetic data/synthetic --road ROAD --tire TIRE --out results --page docs/results.md
    python -m benchmarks.results ... --settings synthetic-full,road-4shot --methods duet,rad --categories cookie --seeds 0

Every line is an ordinary `mm3dad evaluate` with a folder of its own below OUT, resumable; the page is written after each of them, from all
that is kept there. Data that are not there leave their lines out, and the page says so. Exit status 1: something that was asked for failed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.plan import ALL, DATA, METHODS, SEEDS, SETTINGS, Data, find_obstacle, method_options, shots_of, uses_normals
from benchmarks.results_page import write_page
from mm3dad.errors import ConfigError, Mm3dadError, nearest_name
from mm3dad.registry import METHODS as REGISTRY
from mm3dad.run.evaluate import evaluate


def run_results(
    roots: Mapping[str, Path | None],
    out: Path,
    page: Path,
    *,
    settings: Sequence[str] = SETTINGS,
    methods: Sequence[str] = METHODS,
    categories: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    published: bool = False,
    device: str = "cpu",
    own_roots: Mapping[tuple[str, str], Path] | None = None,
) -> dict[tuple[str, str], str]:
    """Run what is asked for and write the page; what fails is named there and does not stop the rest.

    Args:
        roots: name of a data set -> its folder, None or left out where the user has none.
        out: folder of results and cached features.
        page: Markdown file.
        settings: names as in `plan.SETTINGS`.
        methods: names of methods.
        categories: only these; None for all.
        seeds: of the detectors; zero-shot methods run under the first.
        published: published backbones and options instead of the defaults.
        device: torch device.
        own_roots: (data, method) -> a folder of its own, where methods want the data prepared in different ways.

    Returns:
        (setting, method) -> what went wrong.

    Raises:
        ConfigError: an unknown setting or method.
    """
    for word, given, known in (("setting", settings, SETTINGS), ("method", methods, REGISTRY.names())):
        for name in given:
            if name not in known:
                raise ConfigError(f"unknown {word} {name!r}; {nearest_name(name, known)}")
    lines = list(dict.fromkeys([*METHODS, *methods]))
    failed: dict[tuple[str, str], str] = {}
    left_out: dict[tuple[str, str], str] = {}
    for data, setting, method in itertools.product(DATA, ALL, methods):
        name = f"{data.name}-{setting}"
        if name not in settings or find_obstacle(method, setting):
            continue
        root = (own_roots or {}).get((data.name, method), roots.get(data.name))
        try:
            if reason := _run(data, setting, method, root, out, categories, seeds, published, device, roots.get("synthetic")):
                left_out[name, method] = reason
        except Mm3dadError as error:
            failed[name, method] = _hide_folders(" ".join(str(error).split()), [*roots.values(), root, out])
            print(f"{name}, {method}: {error}", flush=True)
        write_page(page, out, lines, left_out, failed)
    write_page(page, out, lines, left_out, failed)
    return failed


def _run(
    data: Data,
    setting: str,
    method: str,
    root: Path | None,
    out: Path,
    categories: Sequence[str] | None,
    seeds: Sequence[int],
    published: bool,
    device: str,
    synthetic: Path | None,
) -> str | None:
    """Evaluate one method on one data set in one setting; return why its line is left out, if it is."""
    if root is None:
        return f"no folder was given (`--{data.name} DIR`)"
    if not root.is_dir():
        return f"the folder given by `--{data.name}` is not there"
    wanted = None if categories is None and data.has_others else [n for n in categories or data.categories if n in data.categories]
    if wanted == []:
        return "none of the chosen categories"
    auxiliary = None
    if "auxiliary" in REGISTRY.get(method).needs.settings and not data.has_others:
        if synthetic is None or not synthetic.is_dir():
            return "needs an auxiliary set of other products: give `--synthetic DIR`"
        auxiliary = f"synthetic:{synthetic}"
    print(f"{data.name}-{setting}, {method}", flush=True)
    evaluate(
        method,
        data.kind,
        root,
        categories=wanted,
        shots=[shots_of(setting)],
        seeds=seeds if uses_normals(method) else seeds[:1],
        options=method_options(method, data, published, out / "features"),
        device=device,
        out=out / f"{data.name}-{setting}" / method,
        auxiliary=auxiliary,
    )
    return None


def _hide_folders(text: str, folders: Iterable[Path | None]) -> str:
    """Leave the folders of one machine out of a reason that goes onto the page."""
    for folder in sorted({str(way) for one in folders if one is not None for way in (one, one.resolve())}, key=len, reverse=True):
        text = text.replace(folder, Path(folder).name)
    return text


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """Add what chooses a part."""

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    parser.add_argument("--out", type=Path, default=Path("results"), help="keeps runs and features")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), help="Markdown file to write")
    parser.add_argument("--settings", type=names, help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--methods", type=names, default=list(METHODS))
    parser.add_argument("--categories", type=names, help="only these categories")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in names(text)], default=list(SEEDS))
    parser.add_argument("--device", default="cpu")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for data in DATA[:3]:
        parser.add_argument(f"--{data.name}", metavar="DIR", type=Path, help=f"{data.title}: {data.note}")
    add_part_options(parser)
    arguments = parser.parse_args(words)
    roots = {data.name: getattr(arguments, data.name) for data in DATA[:3]}
    settings = arguments.settings or [name for data in DATA[:3] for name in data.settings]
    try:
        failed = run_results(
            roots,
            arguments.out,
            arguments.page,
            settings=settings,
            methods=arguments.methods,
            categories=arguments.categories,
            seeds=arguments.seeds,
            device=arguments.device,
        )
    except Mm3dadError as error:
        parser.exit(2, f"results: {error}\n")
    print(f"page: {arguments.page}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
