"""The words of the command line; what is heavy is imported by the verbs, so that --help is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import mm3dad
from mm3dad.cli.completion import SHELLS
from mm3dad.errors import Mm3dadError

STATUS = "exit status: 0 done, 1 the run failed, 2 bad arguments or bad input, 130 interrupted"


class Parser(argparse.ArgumentParser):
    """Errors in one line; help that keeps the line breaks of its example."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to learn more; status 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; `{self.prog} --help` shows an example\n")


class MethodHelp(argparse.Action):
    """Help of a verb that takes a method: with the method before --help, its options too."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="show this; after a METHOD also its options")

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Print the help and leave."""
        text = parser.format_help()
        method = getattr(namespace, "method", None)
        if method is not None:
            from mm3dad.cli.terminal import format_options

            try:
                text += "\n" + format_options(method)
            except Mm3dadError as error:
                parser.error(str(error))
        sys.stdout.write(text)
        parser.exit(0)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    return name.strip(), value.strip()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"expected names separated by commas, got {text!r}")
    return names


def _whole(text: str) -> int:
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _shots(text: str) -> int | None:
    if text.strip() == "full":
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"shots are a whole number from 1, or full, got {text!r}")
    return int(text)


def _several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _workers(text: str) -> int | str:
    if text.partition(":")[0] == "ray":
        return text
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, ray, ray:N or ray:ADDRESS, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, such as 0.01, got {text!r}")
    return value


def _video(text: str) -> str:
    if not text.lower().endswith(".mp4"):
        raise argparse.ArgumentTypeError(f"expected a file that ends in .mp4, got {text!r}")
    return text


def verb_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb by its name."""
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(verbs.choices)


def build_parser() -> Parser:
    """Return the parser; `verb` of its result names the function in `verbs`."""
    parser = Parser(
        prog="mm3dad",
        description="Find defects on manufactured parts from an RGB image and a 3D point cloud of the same view.",
        epilog=f"start with:\n  mm3dad demo --out demo\n\n{STATUS}",
    )
    parser.add_argument("--version", action="version", version=f"mm3dad {mm3dad.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def add(name: str, summary: str, example: str, json: str | None = None, method: bool = False) -> Parser:
        verb = verbs.add_parser(name, help=summary, description=summary, epilog=f"example:\n{example}\n\n{STATUS}", add_help=not method)
        if method:
            verb.add_argument("-h", "--help", action=MethodHelp)
        verb.add_argument("--config", metavar="FILE", help="YAML with words of this verb; those given here go before it")
        if json:
            verb.add_argument("--json", metavar="FILE", help=json)
        return verb

    demo = add(
        "demo", "make synthetic parts, find their defects, write a report", "  mm3dad demo --out demo", "where a copy of the results goes"
    )
    demo.add_argument("--out", metavar="DIR", default="demo", help="folder for data, results and report (default: demo)")
    demo.add_argument("--categories", metavar="A,B", type=_names, help="synthetic categories (default: three of different character)")
    demo.add_argument("--seed", metavar="S", type=_whole, default=0, help="seed of data and detector (default: 0)")
    demo.add_argument("--size", metavar="PIXELS", type=_positive, default=400, help="height and width of the samples (default: 400)")
    demo.add_argument("--train", metavar="N", type=_positive, default=20, help="good parts per category to fit on (default: 20)")
    demo.add_argument("--overwrite", action="store_true", help="evaluate again although results are there")

    prepare = add(
        "prepare",
        "write a data set ready for use into a new folder",
        "  mm3dad prepare synthetic --out data/synthetic --categories gasket,cookie --seed 1 --size 400\n"
        "  mm3dad prepare mvtec3d --root downloads/mvtec_3d --out data/mvtec3d\n"
        "  mm3dad prepare mvtec3d --from mvtec_3d_anomaly_detection.tar.xz --out data/mvtec3d",
        "where the summary goes",
    )
    prepare.add_argument(
        "dataset", metavar="NAME", choices=("synthetic", "mvtec3d", "eyecandies", "folder"), help="synthetic, mvtec3d, eyecandies or folder"
    )
    prepare.add_argument("--root", metavar="DIR", help="the data as downloaded; it is only read")
    prepare.add_argument(
        "--from", metavar="ARCHIVE", dest="archives", action="append", default=[], help="downloaded archive, unpacked first; repeatable"
    )
    prepare.add_argument("--out", metavar="DIR", required=True, help="new folder, or the one of an interrupted call")
    prepare.add_argument("--categories", metavar="A,B", type=_names, help="only these (default: all)")
    prepare.add_argument("--seed", metavar="S", type=_whole, help="seed of the synthetic data, or of the plane search (default: 0)")
    prepare.add_argument("--size", metavar="PIXELS", type=_positive, help="synthetic: height and width (default: 400)")
    _add_workers(prepare, "one per core")
    _add_set(prepare, "an option of the preparation; synthetic: number of train, validation, good or defect samples")

    doctor = add(
        "doctor", "check a data set, or this installation", "  mm3dad doctor data/mvtec3d\n  mm3dad doctor --self", "where the findings go"
    )
    doctor.add_argument("path", metavar="PATH", nargs="?", help="data set, category, folder or file")
    doctor.add_argument("--self", dest="itself", action="store_true", help="check the installation instead")

    fit = add(
        "fit",
        "fit a detector on good parts and save it",
        "  mm3dad fit duet --dataset synthetic --root data/synthetic --category cookie --out models/cookie",
        "where the summary goes",
        method=True,
    )
    _add_data(fit)
    fit.add_argument("--out", metavar="FOLDER", required=True, help="folder of the model; several categories get a folder each in it")
    fit.add_argument("--shots", metavar="K", type=_shots, help="fit on K good parts per category (default: full)")
    fit.add_argument("--seed", metavar="S", type=_whole, default=0, help="seed of the detector and of the choice of shots (default: 0)")
    fit.add_argument(
        "--track",
        metavar="TRACKER",
        choices=("tensorboard", "wandb", "mlflow"),
        help="send the curves of a method that trains to tensorboard, wandb or mlflow",
    )
    _add_workers(fit, "this process, one category after the other")

    predict = add(
        "predict",
        "score files and folders with a saved detector",
        "  mm3dad predict models/cookie data/synthetic/cookie/test --out predictions\n"
        "  mm3dad predict models/cookie --watch camera --out watched",
        "where the list of scores goes",
    )
    predict.add_argument("folder", metavar="FOLDER", help="a saved model")
    predict.add_argument("inputs", metavar="INPUT", nargs="*", help="file or folder; a file in a dataset tree names the whole sample")
    predict.add_argument("--watch", metavar="DIR", help="score parts as they are written into this folder; one line of JSON each")
    predict.add_argument("--out", metavar="DIR", help="keep predictions.json (--watch: watch.jsonl), maps/ and heatmaps/ here")
    _add_workers(predict, "this process")

    serve = add(
        "serve",
        "score uploads over HTTP with a warm model",
        "  mm3dad serve models/cookie --port 8000",
    )
    serve.add_argument("folder", metavar="FOLDER", help="a saved model")
    serve.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    serve.add_argument("--port", metavar="N", type=_whole, default=8000, help="port; 0 takes a free one (default: 8000)")
    serve.add_argument("--token-file", metavar="FILE", help="holds the token of the clients (default: MM3DAD_TOKEN, else one is made up)")
    serve.add_argument("--max-mb", metavar="N", type=_positive, default=64, help="largest request in MB (default: 64)")

    benchmark = add(
        "benchmark",
        "measure the time and memory of a saved model",
        "  mm3dad benchmark models/cookie data/synthetic/cookie/test/good --json benchmark.json\n  mm3dad benchmark models/cookie",
        "where the figures go",
    )
    benchmark.add_argument("folder", metavar="FOLDER", help="a saved model")
    benchmark.add_argument("inputs", metavar="INPUT", nargs="*", help="files or folders to score (default: synthetic parts)")
    benchmark.add_argument("--repeats", metavar="N", type=_positive, default=50, help="predictions to time (default: 50)")
    benchmark.add_argument("--size", metavar="PIXELS", type=_positive, default=400, help="side of the synthetic parts (default: 400)")

    calibrate = add(
        "calibrate",
        "choose the threshold of a saved model on parts it was not fitted on",
        "  mm3dad calibrate models/cookie --dataset synthetic --root data/synthetic --category cookie --false-alarms 0.05\n"
        "  mm3dad calibrate models/part --dataset folder --root good_parts --category part --false-alarms 0.01 --pixel-area 0.001\n"
        "  mm3dad calibrate models/part --dataset folder --root labelled --category part --f1",
        "where the result goes",
    )
    calibrate.add_argument("folder", metavar="FOLDER", help="a saved model; the threshold is kept in it")
    calibrate.add_argument("--dataset", metavar="NAME", required=True, help="mvtec3d, eyecandies, folder or synthetic")
    calibrate.add_argument("--root", metavar="DIR", required=True, help="folder of the data set")
    calibrate.add_argument("--category", metavar="C", action="append", required=True, help="what the model is for; repeatable")
    calibrate.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="parts to use; test flatters figures on it (default: validation)",
    )
    rule = calibrate.add_mutually_exclusive_group(required=True)
    rule.add_argument("--false-alarms", metavar="RATE", type=_share, help="rate of false alarms on good parts, e.g. 0.01")
    rule.add_argument("--f1", action="store_true", help="best F1 instead, where the split has labelled defects")
    calibrate.add_argument("--pixel-area", metavar="AREA", type=_share, help="also a pixel threshold: mean share of a good part above it")
    _add_set(calibrate, "an option of the data set")

    evaluate = add(
        "evaluate",
        "fit and score categories x seeds x shots into one table; a second call resumes",
        "  mm3dad evaluate duet --dataset synthetic --root data/synthetic --seeds 0,1,2 --shots full,4 --json results/duet.json\n"
        "  mm3dad evaluate duet --dataset mvtec3d --root data/mvtec3d --category tire --set modalities=rgb",
        "where the table goes as JSON",
        method=True,
    )
    _add_data(evaluate)
    evaluate.add_argument(
        "--shots", metavar="K,K", type=_several(_shots), default=[None], help="numbers of good parts to fit on, or full (default: full)"
    )
    evaluate.add_argument("--seeds", metavar="S,S", type=_several(_whole), default=[0], help="seeds of the detector (default: 0)")
    evaluate.add_argument("--out", metavar="DIR", help="keeps everything (default: a folder beside the JSON, named after it)")
    evaluate.add_argument("--overwrite", action="store_true", help="drop results that are there")
    evaluate.add_argument("--rescore", action="store_true", help="compute the metrics again from kept maps, without predicting")
    _add_workers(evaluate, "this process, one fit after the other")

    drift = add(
        "drift",
        "compare parts that were scored with those the model was fitted on: did sensors or product move?",
        "  mm3dad drift models/cookie watched --json drift.json --html drift.html",
        "where the figures go",
    )
    drift.add_argument("folder", metavar="FOLDER", help="the saved model that scored them")
    drift.add_argument("results", metavar="RESULTS", help="the --out folder of predict or predict --watch, or its file of rows")
    drift.add_argument("--html", metavar="FILE", help="page with charts to write")

    report = add("report", "write the HTML report of an evaluation or of predictions", "  mm3dad report results/duet --html report.html")
    report.add_argument("folder", metavar="DIR", help="the --out folder of evaluate or predict")
    report.add_argument("--html", metavar="FILE", help="file to write (default: report.html in DIR)")

    view = add(
        "view",
        "look at a sample, a data set or results: 3D page, picture, browser or window",
        "  mm3dad view predictions --html cloud.html --png picture.png\n"
        "  mm3dad view data/synthetic/cookie/test --model models/cookie --html why.html",
    )
    view.add_argument("path", metavar="PATH", help="sample file, data set, or the --out folder of predict or evaluate")
    view.add_argument("--html", metavar="FILE", help="3D page to write (the default: <name>-view.html here)")
    view.add_argument("--png", metavar="FILE", help="picture to write")
    view.add_argument("--gif", metavar="FILE", help="turning picture to write")
    view.add_argument("--mp4", metavar="FILE", type=_video, help="the same as a video to write (needs the extra video)")
    view.add_argument(
        "--model", metavar="FOLDER", help="saved model that scores the sample and says why: its groups and matched normal patches"
    )
    view.add_argument("--layer", metavar="NAME", help='layer to begin with, e.g. "curvature" (default: the score, else RGB)')
    view.add_argument("--serve", action="store_true", help="show it in a browser until Ctrl-C; click a point to see why")
    view.add_argument("--port", metavar="N", type=_positive, default=8080, help="port of --serve (default: 8080)")
    view.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="address of --serve (default: 127.0.0.1, this machine only)")
    view.add_argument("--window", action="store_true", help="show it in a window, with keys")
    view.add_argument("--compare", metavar="PATH", help="--serve and --window: other results of the same samples, or another model, beside")
    view.add_argument("--sample", metavar="ID", help='which sample, e.g. "test/hole/003" (default: the highest score)')

    export = add(
        "export",
        "write the extractors of a saved model as ONNX, compared with torch; the bank stays outside",
        "  mm3dad export models/cookie --out onnx --size 400,400",
        "where the description of the files goes",
    )
    export.add_argument("folder", metavar="FOLDER", help="a saved model")
    export.add_argument("--out", metavar="DIR", required=True, help="gets rgb.onnx, xyz.onnx where the points have a network, export.json")
    export.add_argument("--size", metavar="H,W", type=_several(_positive), help="of the samples (default: the square of image_size)")

    push = add(
        "push",
        "upload a saved model to the Hugging Face hub with a generated model card; private unless asked otherwise",
        "  mm3dad push models/cookie acme/cookie-duet",
        "where the summary goes",
    )
    push.add_argument("folder", metavar="FOLDER", help="a saved model")
    push.add_argument("repo", metavar="REPO", help="OWNER/NAME on the hub; made where it is not there")
    push.add_argument("--public", action="store_true", help="everyone may see a repository that is made now (default: private)")
    push.add_argument("--licence", metavar="ID", default="other", help='of the model, for the card, e.g. "mit" (default: other)')

    pull = add(
        "pull",
        "download a model from the Hugging Face hub, checked before it is written",
        "  mm3dad pull acme/cookie-duet models/cookie\n  mm3dad pull acme/cookie-duet@v1 models/cookie",
        "where the summary goes",
    )
    pull.add_argument("repo", metavar="REPO", help="OWNER/NAME, or OWNER/NAME@REVISION (branch, tag or commit)")
    pull.add_argument("out", metavar="FOLDER", help="of the model; one that is there is replaced")

    synthesize = add(
        "synthesize",
        "make defects on good parts and write them as a data set, with a contact sheet",
        "  mm3dad synthesize dual --dataset synthetic --root data/synthetic --category cookie --out data/dual\n"
        "  mm3dad evaluate duet --dataset mvtec3d --root data/dual",
        "where the summary goes",
    )
    synthesize.add_argument("name", metavar="NAME", help="name of a synthesizer; `mm3dad list synthesizers` names them")
    _add_tree(synthesize)
    synthesize.add_argument("--category", metavar="C", action="append", help="repeatable (default: every category)")
    synthesize.add_argument("--out", metavar="DIR", required=True, help="new folder, or the one of an interrupted call")
    synthesize.add_argument("--count", metavar="N", type=_positive, default=20, help="defects per category (default: 20)")
    synthesize.add_argument("--seed", metavar="S", type=_whole, default=0, help="seed of the defects (default: 0)")
    synthesize.add_argument("--workers", metavar="N", type=_positive, help="processes (default: one per core)")
    _add_set(synthesize, "an option of the synthesizer or the data set, e.g. height=0.003")

    completion = add(
        "completion",
        "write the script by which a shell completes verbs, options and names",
        "  mm3dad completion bash > ~/.local/share/bash-completion/completions/mm3dad",
    )
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" or ".join(SHELLS))

    listing = add("list", "list what there is to choose from", "  mm3dad list methods", "where the list goes")
    kinds = ("methods", "synthesizers", "datasets", "weights")
    listing.add_argument("kind", metavar="KIND", nargs="?", choices=kinds, help=f"{', '.join(kinds[:-1])} or {kinds[-1]} (default: all)")
    return parser


def _add_data(verb: Parser) -> None:
    verb.add_argument("method", metavar="METHOD", help="name of a method; `mm3dad list methods` names them")
    _add_tree(verb)
    verb.add_argument("--category", metavar="C", action="append", help="repeatable (default: every category, one model each)")
    verb.add_argument("--multiclass", action="store_true", help="one model for all categories")
    verb.add_argument(
        "--auxiliary",
        metavar="DATASET:ROOT[:C,C]",
        help="labelled set of other products, for a method that needs one (default: the other categories of --root, test split)",
    )
    verb.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:N or auto (default: cpu)")
    _add_set(verb, "an option of the method or the data set, e.g. modalities=rgb")


def _add_tree(verb: Parser) -> None:
    verb.add_argument("--dataset", metavar="NAME", required=True, help="mvtec3d, eyecandies, real3d, folder or synthetic")
    verb.add_argument("--root", metavar="DIR", required=True, help="folder of the data set")


def _add_workers(verb: Parser, default: str) -> None:
    verb.add_argument(
        "--workers",
        metavar="N|ray",
        type=_workers,
        help=f"processes of one thread each; ray, ray:N or ray:ADDRESS for those of a Ray cluster (default: {default})",
    )


def _add_set(verb: Parser, text: str) -> None:
    verb.add_argument("--set", metavar="key=value", dest="options", type=_pair, action="append", default=[], help=f"{text}; repeatable")
