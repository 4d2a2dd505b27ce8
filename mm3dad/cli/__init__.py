"""The command line: the verbs of `run` and `view`, nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mm3dad.cli.config import parse_words
from mm3dad.cli.parser import build_parser, verb_parsers
from mm3dad.cli.terminal import complain
from mm3dad.errors import Mm3dadError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: the words after `mm3dad`; those of the process when None.

    Returns:
        0 done, 1 the run failed, 2 bad arguments or bad input, 130 interrupted.
    """
    from mm3dad.cli import verbs

    parser = build_parser()
    try:
        arguments = parse_words(parser, verb_parsers(parser), sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # argparse leaves this way after --help and after an error
        return int(stop.code or 0)
    except Mm3dadError as error:  # in the file of --config
        return complain(str(error), error.exit_status)
    verb = verbs.VERBS[arguments.verb]
    if os.environ.get("MM3DAD_DEBUG", "0") not in ("", "0"):
        return verb(arguments)
    try:
        return verb(arguments)
    except Mm3dadError as error:
        return complain(str(error), error.exit_status)
    except KeyboardInterrupt:
        return complain("interrupted; what was finished is kept, run the same command again to go on", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a bug of ours: still one line, and a way to see more
        return complain(f"unexpected {type(error).__name__}: {error}; run again with MM3DAD_DEBUG=1 for the traceback", 1)
