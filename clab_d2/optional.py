"""Packages that only some uses need: told in one line where one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from clab_d2._requirements import is_complete
from clab_d2.errors import ConfigError


def import_optional(module: str, extra: str, use: str) -> ModuleType:
    """Import a package of one of ``setup.py``'s extras.

    Args:
        module: what is imported.
        extra: the extra that brings it.
        use: what needs it, the beginning of the message: "drawing detections".

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, but something of its own is not
        package = module.partition(".")[0]
        # Where only exported models run, the extra would bring PyTorch along.
        wanted = f'"clab_d2[{extra}]"' if is_complete() else package
        raise ConfigError(
            f"{use} needs {package}, which is not installed: pip install {wanted}"
        ) from None
