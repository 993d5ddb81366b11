"""Plug-ins: modules of the user's that a tool imports before it reads its config."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Iterable
from pathlib import Path

from clab_d2.errors import ConfigError


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Give a tool the option ``--import MODULE``, which may be repeated (``args.imports``)."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="first import this module or .py file, which may register parts; repeatable",
    )


def import_plugins(names: Iterable[str]) -> None:
    """Import plug-ins, so that what they register and add to the config is there.

    Call it before the config is made, and in every process of a job. What is imported already
    stays as it is.

    Args:
        names: dotted names of modules, which may lie in the current directory, or paths of .py
            files.

    Raises:
        ConfigError: one line, where a module is missing or its import fails.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name))
            else:
                _import_module(name)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's module does
            raise ConfigError(
                f"--import {name}: its import fails with {_what_and_where(error)}; correct it"
            ) from error


def _import_module(name: str) -> None:
    # Last: a file there must not take the place of a library's module of the same name.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"--import {name}: there is no module {error.name!r}, nor in the current "
                "directory; give a module's name or the path of a .py file"
            ) from None
        raise


def _import_file(path: Path) -> None:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"--import {path}: there is no such file; check the path")
    if any(getattr(module, "__file__", None) == str(path) for module in list(sys.modules.values())):
        return
    # A name of its own, the same in every process, so that what it defines can be pickled.
    name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _what_and_where(error: BaseException) -> str:
    """An error's kind, message and line in the user's file."""
    message = " ".join(str(error).split())
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):  # says where itself
        return what
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return f"{what} ({frames[0].filename}, line {frames[0].lineno})" if frames else what
