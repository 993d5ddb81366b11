"""datasets/find_shots.py as its command line calls it."""

from __future__ import annotations

import json
import runpy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
from encoded_videos import encode
from two_scenes import CUT, two_scenes

from clab_d2.data.coco_vid import load_coco_vid

pytest.importorskip("scenedetect")


@pytest.fixture
def find_shots(repo_root: Path) -> Iterator[Callable[..., int]]:
    handler = signal.getsignal(signal.SIGTERM)
    main = runpy.run_path(str(repo_root / "datasets" / "find_shots.py"))["main"]
    yield lambda *words: main([str(word) for word in words])
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A JSON of a film as pictures, one as a video file, and a still."""
    frames = two_scenes((48, 64))
    (tmp_path / "pictures").mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / "pictures" / f"{number:03d}.png"), frame[:, :, ::-1])
    encode(tmp_path / "film.mp4", frames[: CUT - 1])
    images = [
        {"file_name": f"{folder}/{number:03d}.png", "video_id": video, "frame_id": number}
        for video, folder, count in ((1, "pictures", len(frames)), (2, "film", CUT - 1))
        for number in range(count)
    ]
    images.append({"file_name": "still.png"})
    for number, image in enumerate(images, 1):
        image |= {"id": number, "width": 64, "height": 48}
    data = {
        "categories": [{"id": 1, "name": "thing"}],
        "videos": [{"id": 1, "name": "pictures"}, {"id": 2, "name": "film", "file": "film.mp4"}],
        "images": images,
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    path = tmp_path / "films.json"
    path.write_text(json.dumps(data))
    return path


def test_shots_are_written(
    find_shots: Callable[..., int], films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads(films.read_text())
    assert find_shots(films, "--image-root", films.parent, "--output", films) == 0
    assert f"pictures: 2 shots, from frames 0, {CUT}" in capsys.readouterr().out
    after = json.loads(films.read_text())
    assert [video.pop("shots") for video in after["videos"]] == [[0, CUT], [0]]
    assert after == before
    load_coco_vid(str(films), str(films.parent))


def test_frames_that_are_not_there(
    find_shots: Callable[..., int], films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = films.parent / "out.json"
    command = (films, "--image-root", films.parent / "elsewhere", "--output", output)
    assert find_shots(*command) != 0
    assert "no frame of pictures can be read" in capsys.readouterr().err
    assert not output.exists()
