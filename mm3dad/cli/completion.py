"""Completion of the command line by the shell, written by shtab from the parser."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh")
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
    return shtab.complete(parser, shell)
