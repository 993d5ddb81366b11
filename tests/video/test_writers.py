"""What is written can be played and read, and is whole or not there."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from encoded_videos import play
from numbered_frames import grey

from clab_d2.errors import DataError
from clab_d2.video import (
    DetectionWriter,
    FrameFolderWriter,
    SequenceSource,
    VideoWriter,
    open_video,
    open_writer,
)


def test_written_video_is_what_browsers_play(tmp_path: Path) -> None:
    frames = [np.full((48, 64, 3), (200, 60, 10 * n), np.uint8) for n in range(12)]
    path = tmp_path / "new" / "a.mp4"
    with VideoWriter(path, fps=30000 / 1001) as writer:
        for frame in frames:
            writer.write(frame)
        assert not path.exists()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == pytest.approx(30000 / 1001)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it loads
    played = play(path)
    assert len(played) == 12
    for frame, again in zip(frames, played, strict=True):
        assert np.abs(frame.astype(int) - again).max() <= 8
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_odd_and_changing_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path) as writer:
        writer.write(np.full((33, 47, 3), 200, np.uint8))
        writer.write(np.full((66, 48, 3), 200, np.uint8))  # another shape: between black bars
        writer.write(np.full((3, 3, 3), 200, np.uint8))
    first, second, third = play(path)
    assert first.shape == second.shape == third.shape == (34, 48, 3)
    assert first.min() > 190
    assert second[17, 24].min() > 190 and second[17, 2].max() < 10


def test_a_failed_video_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the video before")
    with pytest.raises(KeyError), VideoWriter(path) as writer:
        writer.write(grey(1))
        raise KeyError
    with VideoWriter(tmp_path / "empty.mp4"):
        pass  # no frame, no file
    assert path.read_bytes() == b"the video before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes; a write beyond fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("has_pyav", [True, False])
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(
    has_pyav: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_pyav:
        monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the video before")
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    told = pytest.raises(DataError, match=r"a\.mp4: cannot be written")
    with told as error, full_disk(2000), VideoWriter(path) as writer:
        for frame in noise:
            writer.write(frame)
    assert "\n" not in str(error.value)
    with pytest.raises(KeyError), full_disk(2000), VideoWriter(path) as writer:
        for frame in noise:
            writer.write(frame)
        raise KeyError("not hidden by what the encoder says")
    source = SequenceSource([grey(0)])
    found = Instances((24, 32), pred_boxes=Boxes(torch.ones(50, 4)))
    found.scores, found.pred_classes = torch.ones(50), torch.zeros(50, dtype=torch.long)
    detections = DetectionWriter(tmp_path / "d.json", source, ["cat"])
    told = pytest.raises(DataError, match=r"d\.json: cannot be written")
    with told, full_disk(2000), detections:
        for _ in range(20):
            detections.write(found)
    detections = DetectionWriter(tmp_path / "d.json", source, ["cat"])
    with pytest.raises(KeyError), full_disk(10), detections:
        raise KeyError("not hidden by what could not be written before")
    assert path.read_bytes() == b"the video before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with VideoWriter(tmp_path / "a.mp4") as writer:
            writer.write(grey(1))
    finally:
        os.umask(umask)
    assert (tmp_path / "a.mp4").stat().st_mode & 0o777 == 0o640


def test_without_pyav_opencv_writes(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with caplog.at_level(logging.WARNING), VideoWriter(tmp_path / "a.mp4") as writer:
        for number in range(5):
            writer.write(grey(40 * number))
    assert "pip install av" in caplog.text
    monkeypatch.undo()
    assert [round(float(f.mean()), -1) for f in play(tmp_path / "a.mp4")] == [0, 40, 80, 120, 160]


def test_a_folder_of_jpegs(tmp_path: Path) -> None:
    with open_writer(tmp_path / "out") as writer:
        assert isinstance(writer, FrameFolderWriter)
        for number in range(3):
            writer.write(grey(50 * number))
    source = open_video(tmp_path / "out")
    assert [int(source.read(i)[5, 5, 0]) for i in range(3)] == [0, 50, 100]
    with pytest.raises(DataError, match="holds frames already"):
        open_writer(tmp_path / "out")


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write \.gif; name it \.mp4"):
        open_writer(tmp_path / "a.gif")
    for name in ("file/a.mp4", "file/frames"):
        with pytest.raises(DataError, match="cannot be"):
            open_writer(tmp_path / name)


def test_detections_as_json(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    source = SequenceSource([grey(0)] * 2, fps=12.5, name="clip")
    found = Instances(
        (24, 32),
        pred_boxes=Boxes(torch.tensor([[1.0, 2, 11, 22.5]])),
        scores=torch.tensor([0.75]),
        pred_classes=torch.tensor([1]),
    )
    with DetectionWriter(path, source, ["cat", "dog"]) as writer:
        writer.write(found)
        writer.write(found[found.scores > 0.9])
        assert not path.exists()
    written = json.loads(path.read_text())
    box = {"bbox": [1, 2, 10, 20.5], "category_id": 1, "category": "dog", "score": 0.75}
    assert written == {
        "video": "clip",
        "fps": 12.5,
        "class_names": ["cat", "dog"],
        "frames": [{"frame_id": 0, "detections": [box]}, {"frame_id": 1, "detections": []}],
    }
    with pytest.raises(KeyError), DetectionWriter(tmp_path / "e.json", source, []):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["d.json"]
