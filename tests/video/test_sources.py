"""Frames by number, whatever they come from."""

from __future__ import annotations

import contextlib
import functools
import gc
import http.server
import itertools
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from encoded_videos import encode, moving_pictures, play
from numbered_frames import FakeCapture, grey, write_pictures
from package_threads import package_threads

from clab_d2.errors import DataError
from clab_d2.video import CameraSource, SequenceSource, StreamSource, open_video


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


def test_a_camera_that_nobody_closed_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    source = open_video(2)
    source.read(0)
    assert len(package_threads()) == 1
    del source
    gc.collect()
    assert not package_threads()


@pytest.mark.parametrize("form", [list, tuple, np.stack])
def test_frames_that_a_program_holds(form: Callable[[list[np.ndarray]], Any]) -> None:
    source = open_video(form([grey(n) for n in range(4)]))
    assert isinstance(source, SequenceSource)
    assert (source.num_frames, source.height, source.width) == (4, 24, 32)
    assert [int(source.read(i)[0, 0, 0]) for i in (2, 0, 3, 2)] == [2, 0, 3, 2]
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"no frame {index}; it has 4"):
            source.read(index)


def test_frames_that_a_program_makes() -> None:
    made = (grey(n) for n in range(3))
    with open_video(made) as source:
        assert isinstance(source, StreamSource)
        assert (source.num_frames, source.height) == (None, None)
        assert int(source.read(0)[0, 0, 0]) == 0
        assert (source.height, source.width) == (24, 32)
        with pytest.raises(RuntimeError, match="gives frame 1 now, not 2"):
            source.read(2)
        assert int(source.read(1)[0, 0, 0]) == 1
    assert int(next(made)[0, 0, 0]) == 2, "it is the caller's again"
    with pytest.raises(IndexError, match="ended after 2 frames"):
        source.read(2)


def test_what_are_no_frames() -> None:
    with pytest.raises(DataError, match="no frames were given"):
        open_video([])
    for wrong in (grey(0), [grey(0)[:, :, 0]], np.zeros((2, 3, 24, 32), np.uint8)):
        with pytest.raises(DataError, match=r"must be an RGB array \(H, W, 3\); it has shape"):
            open_video(wrong)


def test_what_is_no_source_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "a.txt").write_text("no video")
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, message in (
        ("gone.mp4", "no such video, folder or camera"),
        ("empty", "the folder holds no pictures"),
        ("bad", "none of its 1 pictures can be read"),
        ("a.txt", "cannot be opened as a video"),
        ("pipe.mp4", "a named pipe, not a file"),
        ("pipe.jpg", "a named pipe, not a file"),
    ):
        with pytest.raises(DataError, match=message) as error:
            open_video(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    """Also where the frame rate varies; without time stamps, by the mean rate."""
    frames = moving_pictures(5)
    clip = encode(tmp_path / "a.mp4", frames, times=[3, 4, 6, 16, 17])
    with open_video(clip) as source:
        times = [source.timestamp(n) for n in range(5)]
    assert times == pytest.approx([0, 0.04, 0.12, 0.52, 0.56])
    with open_video(frames) as source:
        assert source.timestamp(2) is None


def test_a_video_behind_a_url(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", moving_pictures(6))
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]
    try:
        with open_video(f"http://user:secret@127.0.0.1:{port}/a.mp4") as source:
            assert source.name == f"http://127.0.0.1:{port}/a.mp4"
            assert source.num_frames is None
            for number, expected in enumerate(play(tmp_path / "a.mp4")):
                assert np.array_equal(source.read(number), expected)
                assert source.timestamp(number) == pytest.approx(number / 25)
            with pytest.raises(IndexError, match="ended after 6 frames"):
                source.read(6)
        with pytest.raises(DataError, match=r"none\.mp4: cannot be opened as a video"):
            open_video(f"http://127.0.0.1:{port}/none.mp4")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_live_stream_has_the_time_of_the_clock(tmp_path: Path) -> None:
    """MPEG-TS over TCP, without a length."""
    content = encode(tmp_path / "a.ts", moving_pictures(8)).read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(content)

        thread = threading.Thread(target=send)
        thread.start()
        with open_video(f"tcp://127.0.0.1:{server.getsockname()[1]}") as source:
            assert source.read(0).shape == (48, 64, 3)
            assert source.timestamp(0) == 0
            times = []
            with contextlib.suppress(IndexError):  # those too late for their reader are dropped
                for number in itertools.count(1):
                    source.read(number)
                    times.append(source.timestamp(number))
        assert times == sorted(times) and all(time >= 0 for time in times)
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass
