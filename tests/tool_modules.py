"""The scripts in tools/ and docs/scripts/, imported: a Python for each call would take seconds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def import_tool(name: str) -> ModuleType:
    """Import ``tools/<name>.py``; its ``main(argv)`` is what the command line calls."""
    return _import(ROOT / "tools" / f"{name}.py", f"tools_{name}")


def import_docs_script(name: str) -> ModuleType:
    """Import ``docs/scripts/<name>.py``, which may import others of that folder."""
    path = ROOT / "docs" / "scripts" / f"{name}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(path.parent), *sys.path])  # as Python does for a script
        return _import(path, f"docs_scripts_{name}")


def _import(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
