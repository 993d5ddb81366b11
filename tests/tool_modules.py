"""The scripts in tools/, imported: to start Python anew for each call takes seconds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def import_tool(name: str) -> ModuleType:
    """Import ``tools/<name>.py``; its ``main(argv)`` is what the command line calls."""
    path = Path(__file__).resolve().parent.parent / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
