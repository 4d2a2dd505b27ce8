"""`--config FILE`: the words of a verb from a YAML file; what stands on the command line goes before it."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm3dad import files
from mm3dad.errors import ConfigError, nearest_name

OPTIONS = "set"  # the section of the file that holds what --set takes


def parse_words(parser: argparse.ArgumentParser, verbs: dict[str, argparse.ArgumentParser], argv: Sequence[str]) -> Namespace:
    """Parse the command line; words that only the file of `--config` gives are taken from there.

    Args:
        parser: of the whole command.
        verbs: the parser of each verb.
        argv: the words after `mm3dad`.

    Raises:
        ConfigError: the file names an option that the verb does not have, or a value of the wrong kind.
        DataError: the file is missing or no YAML.
    """
    verb = verbs.get(next((word for word in argv if not word.startswith("-")), ""))
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        path = finder.parse_known_args(list(argv))[0].config
    except argparse.ArgumentError:  # --config without a file: the parser of the verb says so
        path = None
    if verb is None or path is None or not _takes_config(verb):
        return parser.parse_args(argv)
    defaults = _read_defaults(verb, path)
    for action in verb._actions:
        if action.dest in defaults:
            action.default, action.required = argparse.SUPPRESS, False
            if not action.option_strings and action.nargs is None:
                action.nargs = "?"
    for group in verb._mutually_exclusive_groups:
        group.required = group.required and not any(action.dest in defaults for action in group._group_actions)
    arguments = parser.parse_args(argv)
    for group in verb._mutually_exclusive_groups:
        actions = group._group_actions
        if any(getattr(arguments, action.dest, action.default) != action.default for action in actions):
            defaults |= {action.dest: False if action.nargs == 0 else None for action in actions if action.dest in defaults}
    given = getattr(arguments, "options", [])
    if given and "options" in defaults:
        over = {_bare(name) for name, _ in given}
        arguments.options = [pair for pair in defaults["options"] if _bare(pair[0]) not in over] + given
    for name, value in defaults.items():
        if not hasattr(arguments, name):
            setattr(arguments, name, value)
    return arguments


def write_config(path: str | Path, arguments: Namespace, options: dict[str, Any]) -> Path:
    """Write the words of a verb as a file that `--config` reads.

    Args:
        path: the YAML to write.
        arguments: as parsed.
        options: what --set would have to say to have every option as it was, defaults included.
    """
    left_out = {"verb", "config", "options", "shots", "overwrite", "rescore", "workers"}  # the last three are of one call
    words = {
        name.replace("_", "-"): value
        for name, value in vars(arguments).items()
        if name not in left_out and value is not None and value is not False
    }
    if hasattr(arguments, "shots"):
        shots = arguments.shots if isinstance(arguments.shots, list) else [arguments.shots]
        words["shots"] = ["full" if count is None else count for count in shots]
    return files.write_yaml(path, {**words, OPTIONS: options})


def _bare(name: str) -> str:
    """`method.gain` and `gain` are one option."""
    return name.removeprefix("method.").removeprefix("dataset.")


def _takes_config(verb: argparse.ArgumentParser) -> bool:
    return any("--config" in action.option_strings for action in verb._actions)


def _read_defaults(verb: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    """Return the words of the file by the names argparse gives them, of the kinds the flags have."""
    content = files.read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold names and values, got {type(content).__name__}; e.g. dataset: synthetic")
    known = {_name(action): action for action in verb._actions if action.dest not in ("help", "config", "options")}
    takes_options = any(action.dest == "options" for action in verb._actions)
    found: dict[str, Any] = {}
    for name, value in content.items():
        if name == OPTIONS and takes_options:
            found["options"] = list(_flatten(path, "", value or {}))
        elif name in known:
            if value is not None:
                found[known[name].dest] = _convert(path, name, known[name], value)
        else:
            names = [*known, OPTIONS] if takes_options else list(known)
            raise ConfigError(f"{path}: unknown option {name!r} of {verb.prog}; {nearest_name(str(name), names)}")
    return found


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1].removeprefix("--") if action.option_strings else action.dest


def _flatten(path: str, prefix: str, section: Any) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) as --set would give them."""
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {OPTIONS} must hold names and values, got {section!r}; e.g. {OPTIONS}: {{modalities: rgb}}")
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flatten(path, f"{prefix}{name}.", value)
        elif isinstance(value, list):
            yield f"{prefix}{name}", ",".join(map(str, value))
        else:
            yield f"{prefix}{name}", str(value)


def _convert(path: str, name: str, action: argparse.Action, value: Any) -> Any:
    """Bring a value of the file to what the flag would have made of it."""
    try:
        if action.nargs == 0:  # a flag without a value
            if not isinstance(value, bool):
                raise argparse.ArgumentTypeError(f"expected true or false, got {value!r}")
            return value
        texts = [str(one) for one in value] if isinstance(value, list) else [str(value)]
        if isinstance(value, dict) or not texts:
            raise argparse.ArgumentTypeError(f"expected a value, got {value!r}")
        repeats = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+")
        kind = action.type if callable(action.type) else str
        found: Any = [kind(text) for text in texts] if repeats else kind(",".join(texts))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ConfigError(f"{path}: {name}: {error}") from None
    if action.choices is not None and found not in action.choices:
        raise ConfigError(f"{path}: {name} must be one of {', '.join(map(str, action.choices))}, got {found!r}")
    return found
