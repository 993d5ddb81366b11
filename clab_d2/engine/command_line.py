"""What command lines of all tools share; needs neither PyTorch nor Detectron2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from clab_d2.errors import ConfigError, DataError, DivergenceError

USER_ERRORS = (ConfigError, DataError, DivergenceError)
EXIT_USER_ERROR = 2


def add_key_value_option(parser: argparse.ArgumentParser) -> None:
    """Give a tool the option ``--opts KEY VALUE ...`` (``args.opts``)."""
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys to change; must come last",
    )


def exit_status(tool: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run a tool of one process; a mistake of the user's is printed as one line.

    Args:
        tool: does the work; returns an exit status, or None for 0.
        args: its command line.

    Returns:
        Exit status: the tool's, or 2 for a mistake of the user's.
    """
    try:
        return tool(args) or 0
    except USER_ERRORS as error:
        return report_mistake(one_line(error))


def one_line(error: BaseException) -> str:
    """The message of a user's mistake, without the traceback that a data loader's worker adds."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.replace("\\n", "\n")  # which our errors write out, PyTorch's message included
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if "Original Traceback" in text:
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(line.strip() for line in lines)


def report_mistake(line: str) -> int:
    """Print a mistake of the user's; the exit status for it."""
    print(f"error: {line}", file=sys.stderr)
    return EXIT_USER_ERROR
