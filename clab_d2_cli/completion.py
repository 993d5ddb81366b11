"""Tab completion as a script for the shell, written once: a tool takes seconds to start."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from clab_d2_cli.commands import Command

SHELLS = ("bash", "zsh")


def completion_script(shell: str, parsers: Mapping[Command, argparse.ArgumentParser]) -> str:
    """The script that completes subcommands, their options and files.

    Args:
        shell: one of ``SHELLS``.
        parsers: of each subcommand that is there.
    """
    import shtab

    root = argparse.ArgumentParser(prog="clab-d2")
    root.add_argument("--version", action="store_true", help="the version of clab_d2")
    subcommands = root.add_subparsers(dest="command")
    for command, parser in parsers.items():
        subcommands.add_parser(
            command.name, help=command.summary, parents=[parser], add_help=False
        )
    subcommands.add_parser("configs", help="list the configs that come with the package")
    shells = subcommands.add_parser("completion", help="tab completion")
    shells.add_argument("shell", choices=SHELLS)
    _complete_files(root)
    return shtab.complete(root, shell)


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Let every option that takes a value complete files; those with choices have their own."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner)
        elif action.choices is None and action.nargs != 0 and action.type in (None, str):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
