"""The command line of ``clab-d2``."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from clab_d2_cli.commands import Command, find_commands
from clab_d2_cli.completion import SHELLS, completion_script

EXIT_USER_ERROR = 2
USAGE = "usage: clab-d2 COMMAND [OPTION ...]"
# The start of what clab_d2 says of a library that is missing or too old.
_UNMET = "clab_d2: "


def help_text() -> str:
    """The list of subcommands; fits a screen of 24 lines and 80 columns."""
    rows = [f"  {command.name:<19}{command.summary}" for command in find_commands().values()]
    rows.append(f"  {'configs':<19}list the configs that come with the package")
    rows.append(f"  {'completion SHELL':<19}tab completion for {' or '.join(SHELLS)}")
    return "\n".join([f"{USAGE}    (each has --help; --version)", *rows])


def import_command(command: Command) -> ModuleType:
    """The module of a tool, whose help names the subcommand and not the file.

    Raises:
        ImportError: a library is missing, as one line.
    """
    # Detectron2's own library says it when it is imported; nobody can act on it here.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    module = importlib.import_module(f"clab_d2_cli.tools.{command.module}")
    if module.__doc__:
        text = module.__doc__
        for other in find_commands().values():
            for written in (f"python {other.script}", other.script):
                text = text.replace(written, f"clab-d2 {other.name}")
        module.__doc__ = text
    return module


def run_command(command: Command, arguments: Sequence[str]) -> int:
    """Run a tool as its file would run; returns its exit status."""
    module = import_command(command)
    # argparse takes the program's name in its messages from here.
    sys.argv = [f"clab-d2 {command.name}", *arguments]
    if hasattr(module, "set_up"):
        module.set_up()
    return module.main(list(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("-h", "--help", "help"):
        return _say(help_text())
    if name == "--version":
        return _say(f"clab_d2 {importlib.metadata.version('clab_d2')}")
    try:
        if name == "completion":
            return _completion(rest)
        if name == "configs":
            return _configs()
        commands = find_commands()
        if name in commands:
            return run_command(commands[name], rest)
    except ImportError as error:
        unmet = _unmet(error)
        if unmet is None or os.environ.get("CLAB_D2_TRACEBACK", "0") != "0":
            raise
        return _fail(unmet)
    if not name:
        print(help_text(), file=sys.stderr)
        return EXIT_USER_ERROR
    near = difflib.get_close_matches(name, [*commands, "completion", "configs"], n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return _fail(f"{name!r} is no command of clab-d2{meant} (clab-d2 --help lists them)")


def _unmet(error: ImportError) -> str | None:
    """What an import that failed lacks, in a line; None where it is none of the libraries that the
    package stands on."""
    if str(error).startswith(_UNMET):
        return str(error)
    from clab_d2._requirements import REQUIREMENTS, check_requirements

    if (error.name or "").partition(".")[0] in {item.module for item in REQUIREMENTS}:
        try:
            check_requirements()
        except ImportError as unmet:
            return str(unmet)
    return None


def _configs() -> int:
    from clab_d2.config_folder import config_folder, list_configs

    print(f"in {config_folder()}", file=sys.stderr)
    return _say("\n".join(list_configs()))


def _completion(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        return _fail(f"clab-d2 completion takes a shell: {', '.join(SHELLS)}")
    parsers = {
        command: import_command(command).make_parser() for command in find_commands().values()
    }
    return _say(completion_script(arguments[0], parsers))


def _say(text: str) -> int:
    """Print an answer; whoever reads it may stop early, as ``head`` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return EXIT_USER_ERROR
