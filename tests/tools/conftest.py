"""What the tools' tests share: tiny videos, and the config of a tiny detector."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_videos import TinyVideos, make_tiny_videos


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyVideos:
    return make_tiny_videos(tmp_path_factory.mktemp("tiny"), lengths=(6, 3, 1))


@pytest.fixture(scope="module")
def config_file(repo_root: Path) -> str:
    return str(repo_root / "configs" / "quick_schedules" / "clab_quick.yaml")
