"""What is written can be played and read, and is whole or not there."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from encoded_videos import play
from numbered_frames import grey

from clab_d2.errors import DataError
from clab_d2.video import (
    FrameFolderWriter,
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
    assert not list(path.parent.glob("*.partial.*"))
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


def test_a_failed_video_keeps_what_plays_under_a_partial_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the video before")
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError), VideoWriter(path) as writer:
        writer.write(grey(1))
        writer.write(grey(100))
        raise KeyError
    assert "a.partial.mp4: not finished; the 2 frames so far are kept there" in caplog.text
    with pytest.raises(KeyError), VideoWriter(tmp_path / "none.mp4"):
        raise KeyError
    with VideoWriter(tmp_path / "empty.mp4"):
        pass  # no frame, no file
    assert path.read_bytes() == b"the video before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.partial.mp4"]
    assert [round(float(f.mean()), -1) for f in play(tmp_path / "a.partial.mp4")] == [0, 100]


def test_a_killed_process_loses_nothing_but_the_last_seconds(tmp_path: Path) -> None:
    code = f"""if True:
        import os, signal, numpy as np
        from clab_d2.video import VideoWriter
        with VideoWriter({str(tmp_path / "a.mp4")!r}) as writer:
            for number in range(200):
                writer.write(np.full((64, 64, 3), number, np.uint8))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["a.partial.mp4"]
    played = play(tmp_path / "a.partial.mp4")
    assert len(played) >= 50
    assert float(played[49].mean()) == pytest.approx(49, abs=4)


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
def test_a_full_disk_is_told_in_one_line(
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
    assert [p.name for p in tmp_path.iterdir() if p.stat().st_size > 3000] == []
    assert path.read_bytes() == b"the video before"


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
