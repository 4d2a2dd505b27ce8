"""The results page: a table per data set and setting, from the runs that are kept, with published figures beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plan import DATA, SEEDS, Data, find_obstacle
from benchmarks.published import DATA as PUBLISHED_DATA
from benchmarks.published import Figure, find_figures
from mm3dad import files
from mm3dad.errors import DataError
from mm3dad.run.table import summarise
from mm3dad.view.tables import COSTS, RATES, number

QUALITY = ("image_auroc", "pixel_auroc", "aupro_30", "aupro_30_ref100")
COST = ("fit_seconds", "predict_ms_p50", "bank_bytes")
TIMED = ("full", "zero")  # where features are computed; the settings after them find them in the cache
SETTING_TITLES = {"full": "all normal samples", "zero": "no normal sample of the part"}
INTRO = """# Results
Every method under one protocol ([protocol.md](protocol.md)), one model per category, means over categories, ± the spread over seeds.
`make results` writes this page, `make reproduce MVTEC=DIR EYECANDIES=DIR` adds the public data sets; both go on after an interruption.
`evaluate.json` of each line keeps the `mm3dad evaluate` command that repeats that line alone.

- `-` is a setting that a method cannot do, or has not run yet; the last column says which.
- *Published* figures (image AUROC / AUPRO@0.3 unless it says otherwise) were read in the numbered source and **not measured here**. Beside
  data that no paper uses stand the figures of the same setting on MVTec 3D-AD or on the paper's own data: an anchor, not a comparison.
- Times are of the first seed with all normal samples (or none), on a machine that may have had other work; later seeds and fewer shots take
  the features of some methods from a cache, so their times say nothing and are left out.
- **Transductive** methods see the whole test set before they score it; **auxiliary** ones learned from labelled defects of other products.
"""


def write_page(
    path: Path, out: Path, methods: Sequence[str], left_out: Mapping[tuple[str, str], str], failed: Mapping[tuple[str, str], str]
) -> Path:
    """Write the page of everything that is kept below `out`.

    Args:
        path: the Markdown file.
        out: folder of results, `<setting>/<method>` of `mm3dad evaluate --out`.
        methods: lines of every table, in this order.
        left_out: (setting, method) -> why it was not run by the call that writes the page.
        failed: (setting, method) -> what stopped it in that call.
    """
    sources: list[str] = []
    kept = {(name, method): read_kept(out / name / method) for data in DATA for name in data.settings for method in methods}
    parts = [INTRO, _provenance(result for result, _ in kept.values() if result)]
    for data in DATA:
        if not any(kept[name, method][1] for name in data.settings for method in methods):
            why = {reason for (name, _), reason in {**left_out, **failed}.items() if name in data.settings} or {"not run yet"}
            parts.append(f"## {data.title}\n{data.note} Missing: {'; '.join(sorted(why))}.\n")
            continue
        parts.append(f"## {data.title}\n{data.note}\n")
        for setting, name in zip(data.parts, data.settings, strict=True):
            lines = [
                _line(data, method, setting, kept[name, method], left_out.get((name, method)), failed.get((name, method)), sources)
                for method in methods
            ]
            title = SETTING_TITLES.get(setting, setting.replace("shot", "-shot"))
            parts.append(f"### {data.title}: {title}\n{draw_markdown(_head(), lines)}")
    parts.append("## Sources of the published figures\n" + "".join(f"{n}. {text}.\n" for n, text in enumerate(sources, 1)))
    return files.write_text(path, "\n".join(parts))


def read_kept(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the latest evaluate.json of a folder and all finished runs that were made with its version and configuration.

    A part run leaves an evaluate.json of its part; runs of earlier calls stay and count.

    Raises:
        DataError: a run is damaged.
    """
    if not (folder / "evaluate.json").is_file():
        return {}, []
    result = files.read_json(folder / "evaluate.json")
    runs = []
    for path in sorted((folder / "runs").glob("*/run.json")):
        run = files.read_json(path)
        try:
            identity = run["identity"]
            config = {name: value for name, value in identity["config"].items() if name != "seed"}
            if (identity["mm3dad"], config) == (result["mm3dad"], result["config"]):
                runs.append({name: run[name] for name in ("category", "seed", "metrics")})
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged or foreign ({error!r}); delete it and run again") from error
    return result, runs


def draw_markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows) + "\n"


def _head() -> list[str]:
    names = {**RATES, **COSTS}
    ours = [names[name] for name in QUALITY]
    return ["method", *ours, "published", "source", "fitted on", "features", *(names[name] for name in COST), "mean over, or why not"]


def _line(
    data: Data,
    method: str,
    setting: str,
    kept: tuple[dict[str, Any], list[dict[str, Any]]],
    left_out: str | None,
    failed: str | None,
    sources: list[str],
) -> list[str]:
    result, runs = kept
    obstacle = find_obstacle(method, setting)
    published = [] if obstacle else find_figures(method, data.name, setting)
    beside = [_published(published, data), _sources(published, sources)]
    if obstacle or not runs:
        return [method, *["-"] * len(QUALITY), *beside, "-", "-", *["-"] * len(COST), obstacle or failed or left_out or "not run yet"]
    mean = summarise(runs)["mean"]
    features = ", ".join(dict.fromkeys(str(row["name"]) for row in result["weights"])) or "no pretrained weights"
    first = summarise([run for run in runs if run["seed"] == min(one["seed"] for one in runs)])["mean"]
    ours = [_cell(mean, name) for name in QUALITY]
    cost = [number(first[name], name) if setting in TIMED or name == "bank_bytes" else "-" for name in COST]
    return [
        method,
        *ours,
        *beside,
        _fitted_on(result, setting),
        features,
        *cost,
        _coverage(data, setting, runs) + (f"; {failed}" if failed else ""),
    ]


def _cell(mean: Mapping[str, Any], name: str) -> str:
    if mean[name] is None:
        return "-"
    spread = mean["std"][name]
    return number(mean[name], name) + (f" ± {spread:.3f}" if name in RATES and spread is not None else "")


def _fitted_on(result: Mapping[str, Any], setting: str) -> str:
    protocol = result["protocol"]
    if protocol["auxiliary"]:
        sets = list(protocol["auxiliary"].values())
        return f"**auxiliary**: labelled test sets of other categories of {', '.join(dict.fromkeys(one['dataset'] for one in sets))}"
    if protocol["zero_shot"]:
        return "nothing; **transductive**" if protocol["transductive"] else "nothing"
    fitted = "all normal samples" if setting == "full" else f"{setting.removesuffix('shot')} normal"
    return fitted + ("; **transductive**" if protocol["transductive"] else "")


def _coverage(data: Data, setting: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Say what the line is the mean of, and whether that is all."""
    done = {(run["category"], run["seed"]) for run in runs}
    names, own = sorted({name for name, _ in done}), sorted({seed for _, seed in done})
    wanted_seeds = SEEDS[:1] if setting == "zero" else SEEDS
    whole = len(done) == len(names) * len(own) and set(data.categories) <= set(names) and set(wanted_seeds) <= set(own)
    text = f"{len(names)} of {len(data.categories)} categories, seeds {', '.join(map(str, own))}"
    return text if whole else f"**part**: {text}{'' if len(done) == len(names) * len(own) else ', not each category with each seed'}"


def _published(figures: Sequence[Figure], data: Data) -> str:
    shown = []
    for figure in figures:
        place = [] if figure.data == data.name else [PUBLISHED_DATA.get(figure.data, figure.data)]
        notes = "; ".join([*place, *([figure.what] if figure.what else [])])
        shown.append(f"{figure.values}{f' ({notes})' if notes else ''}")
    return ", ".join(shown) or "-"


def _sources(figures: Sequence[Figure], sources: list[str]) -> str:
    for figure in figures:
        if figure.source not in sources:
            sources.append(figure.source)
    return ", ".join(dict.fromkeys(f"[{sources.index(figure.source) + 1}]" for figure in figures)) or "-"


def _provenance(results: Iterable[Mapping[str, Any]]) -> str:
    """Name versions, machines and the licence of the weights of everything on the page."""
    results = list(results)
    if not results:
        return "Nothing has been measured yet.\n"
    versions = {f"mm3dad {result['mm3dad']}, torch {result['versions']['torch']}" for result in results}
    machines = {
        f"{result['machine']['device']} of a machine with {result['machine']['cores']} cores ({result['machine']['processor']}), "
        f"{result['machine']['torch_threads']} torch threads"
        for result in results
    }
    weights = {f"{row['name']}: {row['licence']}" for result in results for row in result["weights"]}
    return f"Made with {'; '.join(sorted(versions))}, on {'; '.join(sorted(machines))}. Weights: {'; '.join(sorted(weights)) or 'none'}.\n"
