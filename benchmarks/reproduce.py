"""Run the whole published protocol on the real data sets: check, weights, prepare, every method on every category, results page.

    python -m benchmarks.reproduce --mvtec3d DIR --eyecandies DIR --out results --page docs/results.md
    python -m benchmarks.reproduce --mvtec3d DIR --backbone default        # the embedded backbone, without the published weights

The folders are the downloads, unpacked; they are only read. Prepared copies go to OUT/data. A second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plan import find_data, method_options
from benchmarks.results import add_part_options, run_results
from mm3dad.data.eyecandies import is_raw
from mm3dad.errors import DataError, Mm3dadError, WeightsError
from mm3dad.registry import DATASETS
from mm3dad.registry import METHODS as REGISTRY
from mm3dad.run.prepare import prepare

DATA = ("mvtec3d", "eyecandies")
LAYOUT = {
    "mvtec3d": "<category>/{train,validation,test}/<good|defect>/{rgb,xyz,gt}",
    "eyecandies": "<category>/{train,val,test_public}/data",
}
OWN_FOREGROUND = {("eyecandies", "muscv2"): "musc"}  # its paper takes another light and another foreground than M3DM's


def check_tree(name: str, root: Path, categories: Sequence[str] | None) -> None:
    """Refuse a folder that is not the download it is given for, before hours are spent.

    Raises:
        DataError: no folder, another data set, or a category that is not there.
    """
    if not root.is_dir():
        raise DataError(f"expected {find_data(name).title} at {root}, found {'a file' if root.exists() else 'nothing'}; check the path")
    raw = [folder.name for folder in sorted(root.iterdir()) if folder.is_dir() and is_raw(folder)]
    if name == "eyecandies" and not raw:
        raise DataError(f"{root} is not the Eyecandies download, expected {LAYOUT[name]} in it; give the folder that holds its categories")
    if name == "mvtec3d" and raw:
        raise DataError(f"{root} holds {raw[0]} in the layout of Eyecandies, expected {LAYOUT[name]}; give it as EYECANDIES")
    for category in _choose(name, root, categories):
        have = DATASETS.get(name)(root, category, "train").modalities
        if set(have) != {"rgb", "xyz"}:
            raise DataError(f"{root}/{category} has {', '.join(have) or 'no'} files only, expected {LAYOUT[name]}")


def check_weights(methods: Sequence[str]) -> None:
    """Load the published weights of every method once, so that a missing file is known before the data are prepared.

    Raises:
        WeightsError: what is missing for which method, all of it.
    """
    found: dict[tuple[Any, Any], str | None] = {}  # a hub that cannot be reached is waited for once per network
    missing = []
    for method in methods:
        options = method_options(method, find_data("mvtec3d"), True, Path("features"))
        network = options.get("backbone"), options.get("points")
        if network not in found:
            try:
                _ = REGISTRY.get(method)(**options).weights
                found[network] = None
            except Mm3dadError as error:
                found[network] = " ".join(str(error).split())
        if found[network] is not None:
            missing.append(f"{method} ({', '.join(map(str, filter(None, network)))}): {found[network]}")
    if missing:
        raise WeightsError(
            f"published weights are missing for {len(missing)} of {len(methods)} methods; with a network they are fetched, else use "
            f"BACKBONE=default (--backbone default) for the embedded ones, or leave the methods out:\n  " + "\n  ".join(missing)
        )


def reproduce(
    roots: Mapping[str, Path],
    out: Path,
    page: Path,
    *,
    methods: Sequence[str],
    categories: Sequence[str] | None = None,
    published: bool = True,
    prepare_options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    **options: Any,
) -> dict[tuple[str, str], str]:
    """Check, prepare and evaluate; arguments as `run_results`.

    Args:
        roots: "mvtec3d" and / or "eyecandies" -> the unpacked download.
        out: results, prepared data and cached features.
        page: Markdown file.
        methods: names of methods.
        categories: only these; None for all.
        published: published backbones, else the embedded one.
        prepare_options: of the preparation of MVTec 3D-AD.
        workers: processes of the preparation, all cores when None.
        options: further ones of `run_results`.

    Returns:
        (setting, method) -> what went wrong.

    Raises:
        DataError: a folder is missing or is not that data set.
        WeightsError: published weights are missing.
    """
    for name, root in roots.items():
        check_tree(name, root, categories)
    chosen = {name: _choose(name, root, categories) for name, root in roots.items()}
    if not any(chosen.values()):
        raise DataError(f"none of the categories {', '.join(categories or ())} is there; check their spelling")
    if published:
        check_weights(methods)
    own: dict[tuple[str, str], Path] = {}
    for name, wanted in chosen.items():
        variants = {method: OWN_FOREGROUND.get((name, method), "m3dm") for method in methods if wanted}
        for variant in dict.fromkeys(variants.values()):
            given = {"variant": variant} if name == "eyecandies" else dict(prepare_options or {})
            folder = out / "data" / (f"{name}-{variant}" if name == "eyecandies" else name)
            prepare(name, roots[name], folder, categories=wanted, workers=workers, **given)
            own |= {(name, method): folder for method in methods if variants[method] == variant}
    settings = options.pop("settings", None) or [setting for name in roots for setting in find_data(name).settings]
    return run_results(
        {}, out, page, methods=methods, categories=categories, settings=settings, published=published, own_roots=own, **options
    )


def _choose(name: str, root: Path, categories: Sequence[str] | None) -> list[str]:
    known = DATASETS.get(name).categories(root)
    return [one for one in known if categories is None or one in categories]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in DATA:
        parser.add_argument(f"--{name}", metavar="DIR", type=Path, help=f"the download of {find_data(name).title}, unpacked")
    parser.add_argument("--backbone", choices=("published", "default"), default="published", help="default: the embedded one")
    add_part_options(parser)
    arguments = parser.parse_args(words)
    roots = {name: getattr(arguments, name) for name in DATA if getattr(arguments, name) is not None}
    if not roots:
        parser.exit(2, "reproduce: no data set was given; use MVTEC=DIR and / or EYECANDIES=DIR (--mvtec3d DIR, --eyecandies DIR)\n")
    try:
        failed = reproduce(
            roots,
            arguments.out,
            arguments.page,
            methods=arguments.methods,
            categories=arguments.categories,
            published=arguments.backbone == "published",
            settings=arguments.settings,
            seeds=arguments.seeds,
            device=arguments.device,
        )
    except Mm3dadError as error:
        parser.exit(2, f"reproduce: {error}\n")
    print(f"page: {arguments.page}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
