"""docs/scripts/make_moving_picture.py: the stretch follows from a rule, and both see the same."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from encoded_videos import moving_pictures
from PIL import Image
from stub_detector import NotingModel, make_cfg
from tool_modules import import_docs_script

from clab_d2.errors import ConfigError
from clab_d2.video import VideoDetector


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return import_docs_script("make_moving_picture")


def test_the_scene_is_that_with_most_objects(script: ModuleType) -> None:
    assert script.richest_scene(script.ANNOTATIONS) == range(137, 187)


def test_same_frames_side_by_side(script: ModuleType, tmp_path: Path) -> None:
    frames = moving_pictures(3, 64, 96)
    columns = {}
    for name in ("one", "two"):
        detector = VideoDetector(make_cfg(), NotingModel(), ["thing"])
        columns[name] = list(script.drawn_frames(detector, frames, 0.9, 120))
        assert [frame.shape for frame in columns[name]] == [(80, 120, 3)] * 3
    for frame, original in zip(columns["one"], frames, strict=True):
        assert abs(np.median(frame[2:12, 2:-2]) - np.median(original[2:12])) < 12
    script.write_moving_picture(tmp_path / "p.webp", columns, 12.5, 50)
    with Image.open(tmp_path / "p.webp") as picture:
        assert picture.n_frames == 3
        assert picture.width > 240
        picture.seek(1)
        picture.load()
        assert picture.info["duration"] == 80


def test_models_have_names(script: ModuleType) -> None:
    assert script.named_files(["a b=c.pth"]) == {"a b": Path("c.pth")}
    with pytest.raises(ConfigError, match="write NAME=FILE"):
        script.named_files(["c.pth"])


def test_the_readme_shows_it(repo_root: Path) -> None:
    with Image.open(repo_root / "docs" / "street.webp") as picture:
        assert picture.n_frames == 25
    assert (repo_root / "docs" / "street.webp").stat().st_size < 1.5e6
    assert "](docs/street.webp)" in (repo_root / "README.md").read_text()
