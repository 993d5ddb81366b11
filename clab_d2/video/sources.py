"""Frames in: a video file, a folder, a camera, or arrays that a program holds, by number.

:func:`open_video` tells from a name which of these it is.
"""

from __future__ import annotations

import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np

from clab_d2.data.frame_files import natural_key
from clab_d2.data.frames import read_frame
from clab_d2.data.prefetcher import Prefetcher
from clab_d2.data.video_container import demux_packets, open_container, to_upright_rgb
from clab_d2.data.video_frames import VideoFrameReader, is_video_file
from clab_d2.errors import DataError
from clab_d2.io import refuse_special_file

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
DEFAULT_FPS = 25.0
_TIMEOUT = 10.0  # seconds without a byte, after which a URL is given up


class VideoSource(ABC):
    """Frames by number, from 0.

    Attributes:
        name: what messages call it.
        num_frames: how many frames there are; None for a stream, whose end shows when it comes.
        fps: frames per second.
        height, width: size of the frames in pixels, or None before a stream's first frame.
    """

    name: str
    num_frames: int | None = None
    fps: float = DEFAULT_FPS
    height: int | None = None
    width: int | None = None

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Return frame ``index`` as RGB, uint8 (H, W, 3).

        A stream (``num_frames`` None) can only be read in order. While a :class:`VideoDetector`
        detects in any other, it reads ahead, in a thread.

        Raises:
            IndexError: past the last frame.
            DataError: if the frame is damaged; the others may still be read.
        """

    def timestamp(self, index: int) -> float | None:
        """Seconds from the first frame to frame ``index``, which has been read; None if unknown."""
        return None

    def close(self) -> None:
        """Let go of files and devices."""
        return

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FileSource(VideoSource):
    """A video file; see :class:`clab_d2.data.video_frames.VideoFrameReader`.

    Several threads may read, one at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        # Threads of FFmpeg's own: here, unlike in loading for training, one video is decoded.
        self._reader = VideoFrameReader(path, threads=0)
        self.num_frames = len(self._reader)
        self.fps = self._reader.fps
        self.height, self.width = self._reader.height, self._reader.width
        self._lock = threading.Lock()

    def read(self, index: int) -> np.ndarray:
        with self._lock:
            return self._reader.read(index)

    def timestamp(self, index: int) -> float | None:
        return self._reader.timestamp(index)

    def close(self) -> None:
        self._reader.close()


class FolderSource(VideoSource):
    """A folder of pictures, in natural order (``2.jpg`` before ``10.jpg``)."""

    def __init__(self, path: str | os.PathLike[str], fps: float = DEFAULT_FPS) -> None:
        self.name = os.fspath(path)
        self.fps = fps
        self._files = _pictures_of(Path(path))
        self.num_frames = len(self._files)
        for index in range(self.num_frames):
            try:
                self.height, self.width = self.read(index).shape[:2]
                return
            except DataError:
                continue
        raise DataError(f"{self.name}: none of its {self.num_frames} pictures can be read")

    def read(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self._files):
            raise IndexError(f"{self.name}: no frame {index}; it has {len(self._files)} pictures")
        return read_frame(str(self._files[index]))


class SequenceSource(VideoSource):
    """Frames that a program holds, as often and in what order they are asked for.

    Args:
        frames: RGB uint8 arrays (H, W, 3), or one array (N, H, W, 3).

    Raises:
        DataError: if there is none, or they are no such arrays.
    """

    def __init__(
        self,
        frames: Sequence[np.ndarray] | np.ndarray,
        fps: float = DEFAULT_FPS,
        name: str = "frames",
    ) -> None:
        self.name = name
        self.fps = fps
        self._frames = frames
        self.num_frames = len(frames)
        if not self.num_frames:
            raise DataError(f"{name}: no frames were given")
        shape = np.shape(frames[0])
        if len(shape) != 3 or shape[2] != 3:
            raise DataError(f"{name}: a frame must be an RGB array (H, W, 3); it has shape {shape}")
        self.height, self.width = shape[:2]

    def read(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self._frames):
            raise IndexError(f"{self.name}: no frame {index}; it has {len(self._frames)}")
        return np.asarray(self._frames[index])


class StreamSource(VideoSource):
    """Frames that a program makes, each read once and in order; there may be no end of them.

    Args:
        frames: gives RGB uint8 arrays (H, W, 3); left open at the end.
    """

    def __init__(
        self, frames: Iterable[np.ndarray], fps: float = DEFAULT_FPS, name: str = "frames"
    ) -> None:
        self.name = name
        self.fps = fps
        self._frames = iter(frames)
        self._next = 0

    def read(self, index: int) -> np.ndarray:
        if index != self._next:
            raise RuntimeError(f"{self.name}: a stream gives frame {self._next} now, not {index}")
        frame = next(self._frames, None)
        if frame is None:
            raise IndexError(f"{self.name}: the stream ended after {index} frames")
        self._next += 1
        self.height, self.width = frame.shape[:2]
        return np.asarray(frame)


class _TimedStream(StreamSource):
    """A stream whose frames come with their times, ``(frame, seconds)``."""

    _first: float | None = None
    _time: float | None = None

    def read(self, index: int) -> np.ndarray:
        if index != self._next:
            raise RuntimeError(f"{self.name}: a stream gives frame {self._next} now, not {index}")
        item = next(self._frames, None)
        if item is None:
            raise IndexError(f"{self.name}: the stream ended after {index} frames")
        frame, self._time = item
        if self._first is None:
            self._first = self._time
        self._next += 1
        self.height, self.width = frame.shape[:2]
        return frame

    def timestamp(self, index: int) -> float | None:
        """Of the frame read last."""
        if index != self._next - 1 or self._time is None or self._first is None:
            return None
        return self._time - self._first


class UrlSource(_TimedStream):
    """A video behind a URL: RTSP, HTTP(S) and what else FFmpeg opens. A stream in any case.

    Of what is live (RTSP, RTMP, UDP, or without a length) each read gives the newest frame, as of a
    camera; of a file every frame comes, in order.

    Raises:
        DataError: if nothing answers there within ten seconds, or it is no video.
    """

    def __init__(self, url: str) -> None:
        name = _without_password(url)
        self._container, stream = open_container(url, threads=0, timeout=_TIMEOUT, name=name)
        live = self._container.duration is None or not url.lower().startswith("http")
        frames: Iterator[tuple[np.ndarray, float | None]] = _decoded(self._container, stream, live)
        self._prefetcher = Prefetcher(frames, newest=True) if live else None
        fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        super().__init__(self._prefetcher or frames, fps, name)

    def close(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._container.close()


class CameraSource(_TimedStream):
    """A camera, by number or device file: an endless stream.

    Detection is slower than most cameras, so each read gives the newest frame: from the first read
    on a thread takes them in, and those that nobody asked for in time are dropped.

    Raises:
        DataError: if the camera cannot be opened.
    """

    def __init__(self, camera: int | str) -> None:
        index = int(re.sub(r"^/dev/video", "", str(camera)))
        self._capture = cv2.VideoCapture(index)
        name = f"camera {index}"
        if not self._capture.isOpened():
            raise DataError(f"{name}: cannot be opened; check that it is there and not in use")
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        fps = self._capture.get(cv2.CAP_PROP_FPS) or 30.0
        self._newest = _newest_frames(self._capture)
        super().__init__(self._newest, fps, name)
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)) or None
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) or None

    def close(self) -> None:
        self._newest.close()
        self._capture.release()


#: A video: what :func:`open_video` takes, or an open source.
Source: TypeAlias = str | int | os.PathLike[str] | VideoSource | Iterable[np.ndarray]
#: Several videos, one after the other.
Videos: TypeAlias = Sequence[str | os.PathLike[str] | VideoSource]


def open_video(source: str | int | os.PathLike[str] | Iterable[np.ndarray]) -> VideoSource:
    """Open a video file, a folder of frames, a picture, a camera, or frames that a program holds.

    Args:
        source: a path; a camera's number or device file (``0``, ``"0"``, ``"/dev/video0"``); a URL
            (``rtsp://...``, ``https://...``); or
            RGB uint8 arrays (H, W, 3), where those of an iterable that is no sequence are a stream.

    Raises:
        DataError: if it is missing or is none of these; one line that names it.
    """
    if not isinstance(source, str | int | os.PathLike):
        is_sequence = isinstance(source, Sequence | np.ndarray)
        return SequenceSource(source) if is_sequence else StreamSource(source)
    name = str(source) if isinstance(source, int) else os.fspath(source)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        return UrlSource(name)
    path = Path(name)
    if re.fullmatch(r"\d+|/dev/video\d+", name) and not path.is_dir() and not path.is_file():
        return CameraSource(name)
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise DataError(f"{name}: no such video, folder or camera; check the path")
    refuse_special_file(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return FolderSource(path)
    return FileSource(path)


def each_video(source: Source | Videos) -> Iterator[Source]:
    """The videos that a source names: itself, or those of a list of paths or a folder of videos.

    Args:
        source: what :func:`open_video` takes, an open source, a list of these but arrays, or a
            folder that has no pictures but, at any depth, videos (see :func:`find_videos`).
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir() and not any(map(_is_picture, path.iterdir())):
            yield from find_videos(path) or [source]
            return
    elif isinstance(source, Sequence) and source and all(map(_names_video, source)):
        for one in source:
            yield from each_video(one)
        return
    yield source


def _names_video(source: Any) -> bool:
    return isinstance(source, str | os.PathLike | VideoSource)


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """The videos in a folder, at any depth, in natural order: video files, folders of pictures.

    What begins with a dot, and what a writer has not finished (``*.partial.mp4``), is left out.
    Links to folders are followed, but for those that lead to where they are: these have no end.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in folders if not _leads_back(Path(parent, name))]
        paths = [Path(parent, name) for name in files]
        shown = [path for path in paths if not path.name.startswith(".")]
        found += [p for p in shown if is_video_file(p) and not p.stem.endswith(".partial")]
        if any(map(_is_picture, paths)):
            found.append(Path(parent))
    return sorted(found, key=lambda path: natural_key(str(path)))


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that one on the way to it is in, or is."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    # Resolved each, as some may be links that were followed.
    way = (parent.resolve() for parent in folder.absolute().parents)
    return any(parent.is_relative_to(target) for parent in way)


def _newest_frames(
    capture: cv2.VideoCapture,
) -> Generator[tuple[np.ndarray, float], None, None]:
    """RGB frames of a camera, without those that were too late for their reader."""
    with Prefetcher(_captured_frames(capture), newest=True) as frames:
        yield from frames


def _captured_frames(capture: cv2.VideoCapture) -> Iterator[tuple[np.ndarray, float]]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), time.monotonic()


def _decoded(container: Any, stream: Any, live: bool) -> Iterator[tuple[np.ndarray, float | None]]:
    """RGB frames, with the time by the clock of what is live, else by the file."""
    for packet in demux_packets(container, stream):
        try:
            frames = packet.decode()
        except ValueError:  # PyAV's InvalidDataError is one: a stream joined between key frames
            continue
        for frame in frames:
            yield to_upright_rgb(frame), time.monotonic() if live else frame.time


def _without_password(url: str) -> str:
    """A URL as it may stand in results and logs."""
    return re.sub(r"//[^/@]*@", "//", url)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _pictures_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [p for p in path.iterdir() if _is_picture(p)]
    if not files:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(
            f"{path}: the folder holds no pictures ({kinds}); tools/detect_videos.py takes one of "
            "video files"
        )
    return sorted(files, key=lambda path: natural_key(path.name))
