"""What the tools' tests share: tiny videos, and the config of a tiny detector."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_stub import StubbedStudy
from tiny_videos import TinyVideos, make_tiny_videos

from clab_d2.engine import load_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyVideos:
    return make_tiny_videos(tmp_path_factory.mktemp("tiny"), lengths=(6, 3, 1))


@pytest.fixture(scope="module")
def config_file(repo_root: Path) -> str:
    return str(repo_root / "configs" / "quick_schedules" / "clab_quick.yaml")


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """A config file on tiny videos: a few iterations of a tiny detector."""
    folder = tmp_path_factory.mktemp("study_config")
    videos = make_tiny_videos(folder)
    options = dict(zip(videos.options[::2], videos.options[1::2], strict=True))
    content: dict[str, Any] = {
        "_BASE_": str(repo_root / "configs" / "quick_schedules" / "selsa_quick.yaml"),
        "DATASETS": {
            name: options[f"DATASETS.{name}"] for name in ("VID", "TRAIN", "TEST")
        },
        "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 3}},
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def resolved(tiny_config: Path) -> Path:
    """The whole of that config, as a training writes it."""
    path = tiny_config.with_name("resolved.yaml")
    path.write_text(load_config(str(tiny_config), []).dump())
    return path


@pytest.fixture
def study(
    tmp_path: Path, tiny_config: Path, resolved: Path, monkeypatch: pytest.MonkeyPatch
) -> StubbedStudy:
    """Two learning rates by two seeds; the stub's environment is this process's."""
    made = StubbedStudy(tmp_path / "rates.yaml", tmp_path / "out", tmp_path / "events")
    made.file.write_text("{}")
    made.declare(
        config=str(tiny_config),
        factors={"rate": {"low": {"SOLVER.BASE_LR": 0.01}, "high": {"SOLVER.BASE_LR": 0.03}}},
        seeds=[1, 2],
        metrics=["vid/AP50", "bbox/AP"],
        baseline={"rate": "low"},
    )
    monkeypatch.setenv("STUB_CONFIG", str(resolved))
    monkeypatch.setenv("STUB_EVENTS", str(made.events_file))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return made
