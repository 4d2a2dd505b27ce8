"""One function per verb: takes the parsed words, calls `run` and `view`, returns the exit status."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mm3dad import files
from mm3dad.cli.config import write_config
from mm3dad.cli.terminal import (
    complain,
    count,
    describe_drift,
    describe_point,
    print_catalog,
    print_results,
    print_table,
    say,
    tabulate_costs,
)
from mm3dad.errors import ConfigError


def demo(arguments: Namespace) -> int:
    """`mm3dad demo`."""
    from mm3dad.cli.demo import run_demo

    run_demo(
        arguments.out,
        categories=arguments.categories,
        seed=arguments.seed,
        size=arguments.size,
        train=arguments.train,
        overwrite=arguments.overwrite,
        json_path=arguments.json,
    )
    return 0


def prepare(arguments: Namespace) -> int:
    """`mm3dad prepare`."""
    from mm3dad.run.prepare import prepare as prepare_dataset
    from mm3dad.run.prepare import prepare_synthetic

    options = _options(arguments)
    if arguments.dataset == "synthetic":
        if arguments.root or arguments.archives:
            raise ConfigError("prepare synthetic makes its data itself and takes neither --root nor --from; leave them out")
        folder = prepare_synthetic(
            arguments.out,
            categories=arguments.categories,
            seed=arguments.seed or 0,
            size=arguments.size or 400,
            counts={name: _count(name, value) for name, value in options.items()} or None,
            workers=arguments.workers,
        )
        result: dict[str, Any] = {"out": str(folder)}
    else:
        if arguments.size is not None:
            raise ConfigError(f"--size belongs to prepare synthetic, {arguments.dataset} keeps its own; leave it out")
        if arguments.seed is not None:
            options["seed"] = str(arguments.seed)
        result = prepare_dataset(
            arguments.dataset,
            arguments.root,
            arguments.out,
            archives=arguments.archives,
            categories=arguments.categories,
            workers=arguments.workers,
            **{name: _literal(value) for name, value in options.items()},
        )
    _write_json(arguments, result)
    say(*(f"{name}: {value}" for name, value in result.items() if value not in ([], None)))
    return 0


def doctor(arguments: Namespace) -> int:
    """`mm3dad doctor`: status 2 when the data cannot be used, 1 when the installation lacks something."""
    from mm3dad.run.doctor import doctor as examine
    from mm3dad.run.doctor import doctor_self

    if arguments.itself == (arguments.path is not None):
        raise ConfigError("doctor takes either a PATH or --self; e.g. `mm3dad doctor data/mvtec3d`")
    if arguments.itself:
        found = doctor_self()
        _write_json(arguments, found)
        for name, part in found.items():
            lines = [f"{key}: {value}" for key, value in part.items()] if isinstance(part, dict) else list(map(str, part))
            say(f"{name}:", *(f"  {line}" for line in lines or ["none"]))
        return 1 if found["problems"] else 0
    findings = examine(arguments.path)
    _write_json(arguments, [vars(finding) for finding in findings])
    for finding in findings:
        say(f"{finding.severity}: {finding.path} {finding.problem}; {finding.cure}")
    errors = sum(finding.severity == "error" for finding in findings)
    say(f"{arguments.path}: {count(errors, 'error')}, {count(len(findings) - errors, 'warning')}")
    return 2 if errors else 0


def fit(arguments: Namespace) -> int:
    """`mm3dad fit`."""
    from mm3dad.run.fit import fit_detector

    rows = fit_detector(
        arguments.method,
        arguments.dataset,
        arguments.root,
        arguments.out,
        categories=arguments.category,
        shots=arguments.shots,
        seed=arguments.seed,
        options=_options(arguments),
        multiclass=arguments.multiclass,
        device=arguments.device,
        auxiliary=arguments.auxiliary,
        tracker=arguments.track,
        workers=arguments.workers or 1,
    )
    if not rows:  # a further process of torchrun: the first one writes and speaks
        return 0
    _write_json(arguments, rows)
    _keep_config(arguments, arguments.out, rows[0]["config"], rows[0]["dataset"]["options"])
    for row in rows:
        size = f"{row['bank_bytes'] / 1e6:.1f} MB, {row['fit_seconds']:.1f} s"
        say(f"{row['folder']}: {row['method']} fitted on {count(len(row['samples']), 'sample')} of {', '.join(row['categories'])} ({size})")
    return 0


def predict(arguments: Namespace) -> int:
    """`mm3dad predict`: status 2 when an input could not be scored; the others are."""
    from mm3dad.run.predict import predict_inputs
    from mm3dad.view import write_report

    if bool(arguments.inputs) == (arguments.watch is not None):
        raise ConfigError("predict takes either inputs or --watch DIR; e.g. `mm3dad predict models/cookie --watch camera --out watched`")
    if arguments.watch is not None:
        if arguments.workers is not None:
            raise ConfigError("--watch scores parts as they come, in one process; leave out --workers")
        return _watch(arguments)

    def show(row: dict[str, Any]) -> None:
        verdict = {True: "defective", False: "good", None: "no threshold"}[row["is_anomaly"]]
        threshold = "" if row["threshold"] is None else f" (threshold {row['threshold']:.4g})"
        chance = "" if row["p_value"] is None else f", p {row['p_value']:.3g}"
        notes = "" if row["calibrated"] else ", not calibrated"
        if row["is_outside"]:
            notes += f"; unlike all parts the model was fitted on (p {row['outside_p_value']:.2g}): check sensor and part"
        say(f"{row['id']}: score {row['score']:.4g}{threshold}{chance}: {verdict}{notes}")

    draw = None if arguments.out is None else partial(_draw_row, Path(arguments.out))
    result = predict_inputs(arguments.folder, arguments.inputs, arguments.out, arguments.json, draw, show, arguments.workers or 1)
    if arguments.out is not None:
        say(f"kept in {arguments.out}: predictions.json, maps/, heatmaps/", f"HTML: {write_report(arguments.out)}")
    if result.failures:
        for path, reason in result.failures:
            complain(f"{path} was not scored: {reason}")
        lost = f"{count(len(result.failures), 'input')} not scored, {len(result.rows)} scored"
        return complain(f"{lost}; mend or leave out what is named above", 2)
    return 0


def _watch(arguments: Namespace) -> int:
    """Score what comes into a folder until interrupted; stdout holds nothing but the lines."""
    from mm3dad.run.watch import watch_folder

    def show(row: dict[str, Any], sample: Any, prediction: Any) -> None:
        say(files.format_line(row))  # before its picture: what takes bad parts off the line must not wait for that
        if row["heatmap"] is not None:
            _write_heatmap(Path(arguments.out) / row["heatmap"], sample, prediction)

    def ready() -> None:
        complain(f"watching {arguments.watch}; Ctrl-C ends it")  # on stderr, as stdout is for the lines

    watch_folder(arguments.folder, arguments.watch, out=arguments.out, json=arguments.json, on_line=show, on_ready=ready)
    return 0


def _draw_row(out: Path, sample: Any, prediction: Any, row: dict[str, Any]) -> None:
    """Draw a sample where it is scored, be it in a worker."""
    _write_heatmap(out / "heatmaps" / f"{Path(row['file']).stem}.png", sample, prediction)


def _write_heatmap(path: Path, sample: Any, prediction: Any) -> None:
    from mm3dad.view import panel

    picture = panel(sample, prediction)
    files.write_with(path, lambda temporary: picture.save(temporary, format="PNG", compress_level=3))


def serve(arguments: Namespace) -> int:
    """`mm3dad serve`."""
    from mm3dad.run.serve import read_token, serve_model

    token = read_token(arguments.token_file) if arguments.token_file is not None else os.environ.get("MM3DAD_TOKEN") or None

    def ready(url: str, used: str) -> None:
        shown = used if token is None else "the one given"
        say(f"listening on {url} (/predict, /health, /openapi.json)", f"token: {shown}", "stop with Ctrl-C")

    serve_model(
        arguments.folder, host=arguments.host, port=arguments.port, token=token, max_bytes=arguments.max_mb * 1_000_000, on_ready=ready
    )
    return 0


def benchmark(arguments: Namespace) -> int:
    """`mm3dad benchmark`."""
    from mm3dad.run.benchmark import benchmark_model

    result = benchmark_model(arguments.folder, arguments.inputs, repeats=arguments.repeats, size=arguments.size)
    _write_json(arguments, result)
    print_table(*tabulate_costs(result))
    shape = " x ".join(map(str, result["size"]))
    say(f"{count(result['samples'], 'sample')} of {shape}, {count(result['repeats'], 'prediction')} after {result['warm_up']} to warm up")
    return 0


def calibrate(arguments: Namespace) -> int:
    """`mm3dad calibrate`."""
    from mm3dad.run.calibrate import calibrate_model

    result = calibrate_model(
        arguments.folder,
        arguments.dataset,
        arguments.root,
        categories=arguments.category,
        split=arguments.split,
        false_alarms=arguments.false_alarms,
        pixel_area=arguments.pixel_area,
        options=_options(arguments),
    )
    _write_json(arguments, result)
    say(*describe_point(result))
    return 0


def drift(arguments: Namespace) -> int:
    """`mm3dad drift`."""
    from mm3dad.run.drift import measure_drift
    from mm3dad.view.drift import write_drift

    result, values = measure_drift(arguments.folder, arguments.results)
    _write_json(arguments, result)
    words = describe_drift(result)
    say(*words)
    if arguments.html:
        say(f"charts: {write_drift(result, values, words, arguments.html)}")
    return 0


def evaluate(arguments: Namespace) -> int:
    """`mm3dad evaluate`."""
    from mm3dad.run.evaluate import default_out
    from mm3dad.run.evaluate import evaluate as run_evaluation
    from mm3dad.view import write_report

    options = _options(arguments)
    size = {"eval_size": options.pop("eval_size")} if "eval_size" in options else {}
    out = Path(arguments.out or default_out(arguments.method, arguments.dataset, arguments.json))
    result = run_evaluation(
        arguments.method,
        arguments.dataset,
        arguments.root,
        categories=arguments.category,
        shots=arguments.shots,
        seeds=arguments.seeds,
        options=options,
        multiclass=arguments.multiclass,
        device=arguments.device,
        out=out,
        json_path=arguments.json,
        overwrite=arguments.overwrite,
        rescore=arguments.rescore,
        auxiliary=arguments.auxiliary,
        workers=arguments.workers or 1,
        **size,
    )
    _keep_config(arguments, out, result["config"], result["dataset"]["options"], eval_size=result["protocol"]["eval_size"])
    print_results(result)
    page = write_report(out)
    say(f"JSON: {arguments.json or out / 'evaluate.json'}", f"CSV: {out / 'table.csv'}", f"HTML: {page}", f"maps: {out / 'runs'}")
    return 0


def report(arguments: Namespace) -> int:
    """`mm3dad report`."""
    from mm3dad.view import write_report

    say(f"HTML: {write_report(arguments.folder, arguments.html)}")
    return 0


def view(arguments: Namespace) -> int:
    """`mm3dad view`."""
    if arguments.serve or arguments.window:
        return _view_live(arguments)
    from mm3dad.view import view_path

    if arguments.compare is not None:
        raise ConfigError("--compare shows two results side by side and needs --serve or --window; add one of them")
    written = view_path(
        arguments.path,
        arguments.html,
        arguments.png,
        arguments.gif,
        arguments.mp4,
        sample_id=arguments.sample,
        model=arguments.model,
        layer=arguments.layer,
    )
    say(*(str(path) for path in written))
    return 0


def _view_live(arguments: Namespace) -> int:
    from mm3dad.view.live import open_session, serve_path, show_window

    if (arguments.serve and arguments.window) or any((arguments.html, arguments.png, arguments.gif, arguments.mp4)):
        raise ConfigError("--serve and --window stay open and write no file; give one of them alone, or --html, --png, --gif and --mp4")
    session = open_session(
        arguments.path, sample_id=arguments.sample, model=arguments.model, layer=arguments.layer, compare=arguments.compare
    )
    if arguments.serve:
        serve_path(session, arguments.host, arguments.port, say)
    else:
        show_window(session, say)
    return 0


def export(arguments: Namespace) -> int:
    """`mm3dad export`."""
    from mm3dad.run.export import export_model

    size = arguments.size
    if size is not None and len(size) != 2:
        raise ConfigError(f"--size is height and width, e.g. 400,400, got {len(size)} numbers")
    result = export_model(arguments.folder, arguments.out, tuple(size) if size else None)
    _write_json(arguments, result)
    for row in result["graphs"]:
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in row["inputs"].items())
        say(f"{Path(arguments.out) / row['file']}: {shapes} -> {', '.join(row['outputs'])}; off by {row['largest_difference']:.1e} at most")
    return 0


def push(arguments: Namespace) -> int:
    """`mm3dad push`."""
    from mm3dad.run.hub import push_model

    result = push_model(arguments.folder, arguments.repo, public=arguments.public, licence=arguments.licence)
    _write_json(arguments, result)
    say(f"{result['url']}: {', '.join(result['files'])} (revision {result['revision'][:12]})")
    for name in result["local_paths"]:
        complain(f"option {name} of the model names a path of this machine; who pulls it needs the same file in the same place")
    return 0


def pull(arguments: Namespace) -> int:
    """`mm3dad pull`."""
    from mm3dad.run.hub import pull_model

    result = pull_model(arguments.repo, arguments.out)
    _write_json(arguments, result)
    say(f"{result['folder']}: {result['method']} from {result['repo']} (revision {result['revision'][:12]})")
    return 0


def synthesize(arguments: Namespace) -> int:
    """`mm3dad synthesize`."""
    from mm3dad.run.synthesize import synthesize as make_defects
    from mm3dad.view import write_sheet

    result = make_defects(
        arguments.name,
        arguments.dataset,
        arguments.root,
        arguments.out,
        categories=arguments.category,
        count=arguments.count,
        seed=arguments.seed,
        options=_options(arguments),
        workers=arguments.workers,
    )
    out = Path(arguments.out)
    sheets = [write_sheet(out, name, result["folder"], out / f"{name}-{arguments.name}.png") for name in result["categories"]]
    _write_json(arguments, result | {"sheets": [str(sheet) for sheet in sheets]})
    say(f"{out}: {result['samples']} samples, {result['done']} written now in {result['seconds']} s")
    say(*(f"contact sheet: {sheet}" for sheet in sheets))
    for name, learned in result.get("learned_from", {}).items():
        say(f"{name}: learned from {len(learned['defects'])} defects and {len(learned['normals'])} normal samples ({learned['weights']})")
        say(*(learned[key] for key in ("note", "remember") if key in learned))
    return 0


def list_names(arguments: Namespace) -> int:
    """`mm3dad list`."""
    from mm3dad.run.catalog import CATALOG

    found = {kind: CATALOG[kind]() for kind in ((arguments.kind,) if arguments.kind else CATALOG)}
    _write_json(arguments, found[arguments.kind] if arguments.kind else found)
    for kind, rows in found.items():
        print_catalog(kind, rows)
    return 0


def completion(arguments: Namespace) -> int:
    """`mm3dad completion`."""
    from mm3dad.cli.completion import write_completion
    from mm3dad.cli.parser import build_parser, verb_parsers

    parser = build_parser()
    say(write_completion(parser, verb_parsers(parser), arguments.shell))
    return 0


def _options(arguments: Namespace) -> dict[str, str]:
    """Collect --set key=value; a key given twice with two values is a slip that must not pass."""
    options: dict[str, str] = {}
    for name, value in arguments.options:
        if options.setdefault(name, value) != value:
            raise ConfigError(f"--set {name} was given twice, as {options[name]!r} and {value!r}; keep one of them")
    return options


def _keep_config(arguments: Namespace, folder: str | Path, config: dict[str, Any], theirs: dict[str, Any], **further: Any) -> None:
    """Write every option as it was used, so that `--config` repeats it; seed and device have flags of their own."""
    own = {name: value for name, value in config.items() if name not in ("seed", "device")}
    sections = {"method": own} | ({"dataset": theirs} if theirs else {})
    write_config(Path(folder) / "config.yaml", arguments, {**further, **sections})


def _literal(text: str) -> str | int | float | bool:
    """Read a number or a truth value; anything else stays text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _count(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"number of {name} samples must be a whole number, got {text!r}; e.g. --set {name}=20")
    return int(text)


def _write_json(arguments: Namespace, value: Any) -> None:
    if arguments.json is not None:
        files.write_json(arguments.json, value)


VERBS: dict[str, Callable[[Namespace], int]] = {
    "demo": demo,
    "prepare": prepare,
    "doctor": doctor,
    "fit": fit,
    "predict": predict,
    "serve": serve,
    "benchmark": benchmark,
    "calibrate": calibrate,
    "drift": drift,
    "evaluate": evaluate,
    "report": report,
    "view": view,
    "export": export,
    "push": push,
    "pull": pull,
    "synthesize": synthesize,
    "list": list_names,
    "completion": completion,
}
