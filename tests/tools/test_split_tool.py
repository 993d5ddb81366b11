"""datasets/split_coco_vid.py as its command line calls it."""

from __future__ import annotations

import json
import runpy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_videos import TinyVideos, make_tiny_videos

from clab_d2.data.coco_vid import load_coco_vid


@pytest.fixture
def split(repo_root: Path) -> Iterator[Callable[[list[str]], int]]:
    handler = signal.getsignal(signal.SIGTERM)
    yield runpy.run_path(str(repo_root / "datasets" / "split_coco_vid.py"))["main"]
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyVideos:
    return make_tiny_videos(tmp_path)


def _paths(tmp_path: Path) -> list[str]:
    return ["--train", str(tmp_path / "t.json"), "--val", str(tmp_path / "v.json")]


def test_by_time(
    split: Callable[[list[str]], int],
    tiny: TinyVideos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(tiny.json_file), *_paths(tmp_path), "--by", "time", "--val-share", "0.4"]
    assert split(command) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0].endswith("t.json: 3 videos, 9 images (6 annotated), 6 objects")
    assert output[1].endswith("v.json: 3 videos, 9 images (3 annotated), 3 objects")
    # The loader takes them: of 5, 3 and 1 frames the last 2, 1 and 0 are held back.
    keys = [
        [
            (r["video_id"], r["frame_id"])
            for r in load_coco_vid(str(tmp_path / f), str(tiny.image_root), None, True)
        ]
        for f in ("t.json", "v.json")
    ]
    assert keys[1] == [(1, 3), (1, 4), (2, 2)]
    assert keys[0] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]


def test_by_video(split: Callable[[list[str]], int], tiny: TinyVideos, tmp_path: Path) -> None:
    command = [str(tiny.json_file), *_paths(tmp_path), "--by", "video"]
    assert split([*command, "--val-videos", "v2"]) == 0
    assert [v["name"] for v in json.loads((tmp_path / "v.json").read_text())["videos"]] == ["v2"]
    assert split([*command, "--val-share", "0.5", "--seed", "3"]) == 0
    assert len(json.loads((tmp_path / "v.json").read_text())["videos"]) == 2


def test_mistakes_are_one_line(
    split: Callable[[list[str]], int],
    tiny: TinyVideos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(tiny.json_file), *_paths(tmp_path), "--by", "video"]
    assert split([*command, "--val-videos", "v7"]) == 2
    assert split([str(tmp_path / "none.json"), *command[1:]]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == f"error: {tiny.json_file}: no video is called 'v7'; there are v1, v2, v3"
    assert errors[1].startswith(f"error: {tmp_path / 'none.json'}: no such annotation file")
    assert len(errors) == 2 and not list(tmp_path.glob("[tv].json"))
    for wrong in (
        ["--by", "time", "--seed", "1"],
        ["--by", "video", "--val-videos", "v1", "--seed", "1"],
        ["--by", "time", "--val", str(tiny.json_file)],
    ):
        with pytest.raises(SystemExit):
            split([*command, *wrong])
    assert str(tiny.json_file) not in capsys.readouterr().out
    assert tiny.json_file.read_text().startswith("{")
