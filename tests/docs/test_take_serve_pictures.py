"""docs/scripts/take_serve_pictures.py, but for the browser, which tests/web has."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import cv2
import pytest
from encoded_videos import moving_pictures
from PIL import Image
from tool_modules import import_docs_script

from clab_d2.errors import ConfigError
from clab_d2.video import open_video


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return import_docs_script("take_serve_pictures")


def test_a_folder_becomes_a_file(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, picture in enumerate(moving_pictures(4, 64, 96)):
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    file = script.as_file(folder, tmp_path)
    with open_video(file) as source:
        assert source.num_frames == 4
    assert script.as_file(file, tmp_path) == file


def test_no_browser_is_told(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="no Chromium is installed"):
        script.find_browser()


def test_the_page_shows_them(script: ModuleType, repo_root: Path) -> None:
    text = (repo_root / "docs" / "serve.md").read_text()
    for look in script.LOOKS:
        assert f"]({look.file})" in text
        with Image.open(repo_root / "docs" / look.file) as picture:
            assert picture.width == look.picture_width
