"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Path of a file of the official release's results; skips where this clone has it not.

    Small files travel with the project; larger ones lie in ``shared/golden`` beside it.
    """

    def find(name: str) -> Path:
        for folder in (REPO_ROOT / "tests" / "golden", REPO_ROOT.parent / "shared" / "golden"):
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"{name} (over 1 MB) lies in ../shared/golden, which is not beside this clone")

    return find
