"""Completion of the command line by the shell, written from the parser: by shtab, and for fish, which shtab lacks, here."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")
FILES, FOLDERS = {"FILE", "INPUT", "PATH", "ARCHIVE"}, {"DIR", "FOLDER"}


def write_completion(parser: argparse.ArgumentParser, verbs: dict[str, argparse.ArgumentParser], shell: str) -> str:
    """Return the script that teaches a shell the verbs, their options, and the names of methods, datasets and synthesizers.

    Args:
        parser: of the whole command; its actions get what shtab reads.
        verbs: the parser of each verb.
        shell: of `SHELLS`.
    """
    import shtab

    from mm3dad.run.catalog import CATALOG

    known = {kind: [row["name"] for row in CATALOG[kind]()] for kind in ("methods", "datasets", "synthesizers")}
    for name, verb in verbs.items():
        names = {"method": known["methods"], "dataset": known["datasets"]} | (
            {"name": known["synthesizers"]} if name == "synthesize" else {}
        )
        for action in verb._actions:
            if action.dest in names and action.choices is None:
                action.choices = names[action.dest]
            elif action.metavar in FILES | FOLDERS:
                action.complete = shtab.FILE if action.metavar in FILES else shtab.DIRECTORY  # type: ignore[attr-defined]
    return write_fish(parser, verbs) if shell == "fish" else shtab.complete(parser, shell)


def write_fish(parser: argparse.ArgumentParser, verbs: dict[str, argparse.ArgumentParser]) -> str:
    """Return the script for fish; of a verb's words without a flag, choices and files are offered wherever it stands."""
    (listed,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in listed._choices_actions}
    base = f"complete -c {parser.prog}"
    lines = [f"{base} -f"]
    lines += [f"{base} -n __fish_use_subcommand {_flags(action)}" for action in parser._actions if action.option_strings]
    for name, verb in verbs.items():
        lines.append(f"{base} -n __fish_use_subcommand -a {name} -d {_quote(helps.get(name, ''))}")
        here = f"{base} -n {_quote(f'__fish_seen_subcommand_from {name}')}"
        lines += [f"{here} {_flags(action)}" for action in verb._actions if action.option_strings]
        words = [action for action in verb._actions if not action.option_strings]
        lines += [f"{here} -a {_quote(' '.join(action.choices))}" for action in words if action.choices]
        if any(action.metavar in FILES | FOLDERS for action in words):
            lines.append(f"{here} -F")
    return "\n".join(lines)


def _flags(action: argparse.Action) -> str:
    """Return one option of a command as fish's `complete` takes it."""
    parts = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in action.option_strings]
    if action.nargs != 0:
        parts.append("-r" if action.metavar in FILES | FOLDERS else "-x")  # -r offers files, -x does not
        parts += [f"-a {_quote(' '.join(map(str, action.choices)))}"] if action.choices else []
    return " ".join([*parts, f"-d {_quote(action.help or '')}"])


def _quote(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
