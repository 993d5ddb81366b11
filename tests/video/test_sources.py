"""Frames by number, whatever they come from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from encoded_videos import encode, moving_pictures, play
from numbered_frames import FakeCapture, write_pictures
from package_threads import package_threads

from clab_d2.errors import DataError
from clab_d2.video import CameraSource, open_video


def test_a_video_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving_pictures(9))
    with open_video(path) as source:
        assert (source.num_frames, source.fps) == (9, 25)
        assert (source.height, source.width) == (48, 64)
        for index in (5, 0, 8):
            np.testing.assert_array_equal(source.read(index), play(path)[index])


def test_a_folder_is_in_natural_order(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", ["1.png", "2.PNG", "10.png", "img11.png"])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"no picture")
    source = open_video(str(folder))
    assert source.num_frames == 4
    assert [int(source.read(i)[0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        source.read(4)


def test_a_single_picture(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    assert open_video(tmp_path / "a.png").num_frames == 1


@pytest.mark.parametrize("name", ["7", "frames"])
def test_a_folder_named_like_a_camera_is_a_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / name, ["a.png"])
    assert open_video(name).num_frames == 1


def test_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    for name in ("2", 2, "/dev/video2"):
        with open_video(name) as source:
            assert isinstance(source, CameraSource)
            assert (source.num_frames, source.fps, source.height) == (None, 30, 24)
            assert not package_threads(), "nothing is taken in before it is asked for"
            # The last is the frame's number: the newest, whichever that is by now.
            red, green, number = source.read(0)[0, 0].tolist()
            assert (red, green) == (3, 2) and number >= 1
            with pytest.raises(RuntimeError, match="gives frame 1 now, not 0"):
                source.read(0)
        assert not package_threads()
    with pytest.raises(DataError, match="camera 5: cannot be opened"):
        open_video("5")


def test_what_is_no_source_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "a.txt").write_text("no video")
    for name, message in (
        ("gone.mp4", "no such video, folder or camera"),
        ("empty", "the folder holds no pictures"),
        ("bad", "none of its 1 pictures can be read"),
        ("a.txt", "cannot be opened as a video"),
    ):
        with pytest.raises(DataError, match=message) as error:
            open_video(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)
