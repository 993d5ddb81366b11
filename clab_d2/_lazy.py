"""Names of a package that are looked up at first use, so that importing it costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from clab_d2._requirements import check_requirements


def lazy_names(
    package: str, modules: Mapping[str, str], without_torch: frozenset[str] = frozenset()
) -> Callable[[str], Any]:
    """A package's ``__getattr__``.

    Args:
        package: its ``__name__``.
        modules: name -> the module that has it, or that it is.
        without_torch: names that need neither PyTorch nor Detectron2. For the others these are
            asked for in one line where they are missing.
    """

    def look_up(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if name not in without_torch:
            check_requirements()
        module = importlib.import_module(modules[name])
        found = module if modules[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, found)  # not looked up again
        return found

    return look_up
