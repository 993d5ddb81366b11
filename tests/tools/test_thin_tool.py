"""datasets/thin_coco_vid.py as its command line calls it."""

from __future__ import annotations

import json
import runpy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_videos import make_tiny_videos

from clab_d2.data.coco_vid import load_coco_vid


@pytest.fixture
def thin(repo_root: Path) -> Iterator[Callable[[list[str]], int]]:
    handler = signal.getsignal(signal.SIGTERM)
    yield runpy.run_path(str(repo_root / "datasets" / "thin_coco_vid.py"))["main"]
    signal.signal(signal.SIGTERM, handler)


def test_command_line(
    thin: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = make_tiny_videos(tmp_path)
    output = tmp_path / "thin.json"
    assert thin([str(tiny.json_file), str(output), "--every", "2"]) == 0
    assert capsys.readouterr().out.endswith("3 videos, 9 images (4 annotated), 4 objects\n")
    records = load_coco_vid(str(output), str(tiny.image_root), None, True)
    assert [(r["video_id"], r["frame_id"]) for r in records] == [(1, 1), (1, 3), (2, 1), (3, 0)]


def test_mistakes_are_one_line(
    thin: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.json"
    assert thin([str(missing), str(tmp_path / "o.json"), "--every", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {missing}: no such annotation file") and error.count("\n") == 1
    for wrong in ([str(tmp_path / "o.json"), "--every", "0"], [str(missing), "--every", "2"]):
        with pytest.raises(SystemExit):
            thin([str(missing), *wrong])
    missing.write_text(json.dumps({"images": []}))
    assert thin([str(missing), str(tmp_path / "o.json"), "--every", "2"]) == 2
    assert not (tmp_path / "o.json").exists()
