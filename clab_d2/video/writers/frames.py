"""Frames out: a video file, or a folder of JPEGs.

:func:`open_writer` tells from a name which.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from abc import abstractmethod
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from clab_d2.errors import DataError
from clab_d2.io import atomic_path
from clab_d2.video.sources import DEFAULT_FPS
from clab_d2.video.writers.files import VideoOutput, partial_path, tell_of_partial, write_errors

logger = logging.getLogger(__name__)


class FrameWriter(VideoOutput):
    """Writes the frames of one video."""

    @abstractmethod
    def write(self, frame: np.ndarray) -> None:
        """Append a frame: RGB, uint8 (H, W, 3).

        Raises:
            DataError: if it cannot be written, as on a full disk.
        """


class VideoWriter(FrameWriter):
    """Writes RGB frames as H.264 in an MP4 that browsers play.

    The size is that of the first frame, rounded up to even numbers (the last row or column is
    repeated), because 4:2:0 video has no odd sizes; a later frame of another size is scaled into
    it, with black bars. The file appears under its name only once it is closed. Until then, and if
    the ``with`` block raises, it is ``<name>.partial.mp4``, which plays up to the last second or
    two that were written, even if the process was killed.

    Without PyAV, OpenCV writes MPEG-4 part 2, which not every browser plays, and what is unfinished
    does not play.

    Args:
        path: the file to write, ``.mp4``, ``.mov`` or ``.mkv``; its folder is made if missing.
        fps: frames per second.
        quality: x264's constant rate factor: 0 is lossless, 18 looks so, 51 is the worst.

    Raises:
        DataError: if the folder cannot be written to.
    """

    def __init__(
        self, path: str | os.PathLike[str], fps: float = DEFAULT_FPS, quality: int = 20
    ) -> None:
        self.path = Path(path)
        self._fps = fps if fps > 0 else DEFAULT_FPS
        self._quality = quality
        self._size: tuple[int, int] | None = None
        self._encoder: _AvEncoder | _OpenCVEncoder | None = None
        self._partial = partial_path(self.path)
        with write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.write_bytes(b"")  # what cannot be written is told at once

    def write(self, frame: np.ndarray) -> None:
        """Append a frame: RGB, uint8 (H, W, 3)."""
        with write_errors(self.path):
            if self._encoder is None:
                height, width = frame.shape[:2]
                self._size = (height + height % 2, width + width % 2)
                self._encoder = _make_encoder(self._partial, self._fps, self._size, self._quality)
            self._encoder.encode(_fit(frame, self._size))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file and give it its name. Without a frame there is no file."""
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            self._partial.unlink(missing_ok=True)
            return
        with write_errors(self.path):
            encoder.close()
            with atomic_path(self.path, self.path.suffix) as complete:
                encoder.finish(complete)
            self._partial.unlink(missing_ok=True)

    def leave(self) -> None:
        """Stop before the end, and leave what plays under the partial name."""
        encoder, self._encoder = self._encoder, None
        whole = False
        if encoder is not None:
            # Whatever it could not write is not wanted any more.
            with contextlib.suppress(DataError, OSError):
                encoder.close()
                whole = True
        if self.num_frames and whole:
            tell_of_partial(self._partial, self.num_frames)
        else:
            self._partial.unlink(missing_ok=True)


class FrameFolderWriter(FrameWriter):
    """Writes RGB frames as ``000000.jpg``, ``000001.jpg``, ... into a folder, made if missing.

    Each is a whole file at once: what was written before an error stays.

    Raises:
        DataError: if the folder cannot be made, or holds such frames already: those of two videos
            would be mixed.
    """

    def __init__(self, path: str | os.PathLike[str], quality: int = 92) -> None:
        self.path = Path(path)
        self._quality = quality
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be made a folder ({error.strerror})") from None
        if any(re.fullmatch(r"\d{6}\.jpg", file.name) for file in self.path.iterdir()):
            raise DataError(f"{self.path}: holds frames already; name a new folder, or empty it")

    def write(self, frame: np.ndarray) -> None:
        """Write the next frame: RGB, uint8 (H, W, 3)."""
        file = self.path / f"{self.num_frames:06d}.jpg"
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(file), bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality]):
            raise DataError(f"{file}: cannot be written; check the folder's rights and free space")
        self.num_frames += 1

    def close(self) -> None:
        """Nothing is left to do."""

    def leave(self) -> None:
        """Nothing is taken back."""


def open_writer(path: str | os.PathLike[str], fps: float = DEFAULT_FPS) -> FrameWriter:
    """A writer for a name: ``.mp4``, ``.mov``, ``.mkv`` give a video, no suffix a folder of JPEGs.

    Raises:
        DataError: for any other suffix, or where nothing can be written.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        return FrameFolderWriter(path)
    if path.suffix.lower() not in {".mp4", ".mov", ".mkv", ".m4v"}:
        raise DataError(f"{path}: cannot write {path.suffix}; name it .mp4, or a folder for JPEGs")
    return VideoWriter(path, fps)


def _fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a frame to ``size`` (height, width): pad by one pixel, or scale between black bars."""
    height, width = frame.shape[:2]
    below, beside = size[0] - height, size[1] - width
    if (below, beside) == (0, 0):
        return frame
    if 0 <= below <= 1 and 0 <= beside <= 1:
        return np.pad(frame, ((0, below), (0, beside), (0, 0)), mode="edge")
    scale = min(size[0] / height, size[1] / width)
    new = (max(1, round(height * scale)), max(1, round(width * scale)))
    inner = cv2.resize(frame, new[::-1], interpolation=cv2.INTER_AREA if scale < 1 else None)
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    canvas[top : top + new[0], left : left + new[1]] = inner
    return canvas


class _AvEncoder:
    def __init__(self, path: Path, fps: float, size: tuple[int, int], quality: int) -> None:
        import av

        self._path = path
        # Fragments, each of which plays without what comes after it.
        self._container = av.open(
            str(path),
            "w",
            options={
                "movflags": "frag_keyframe+empty_moov+default_base_moof",
                "flush_packets": "1",
            },
        )
        self._num_frames = 0
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        # A fragment begins at a key frame.
        self._stream.options = {"crf": str(quality), "preset": "veryfast", "g": "50"}
        # Say which colours these are; untagged files come out differently from player to player.
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # 16..235, what every player expects

    def encode(self, frame: np.ndarray) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
        self._container.mux(self._stream.encode(picture))
        self._num_frames += 1

    def close(self) -> None:
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def finish(self, complete: Path) -> None:
        """Copy the closed file's packets into one that is not in fragments.

        Its index is at its front, so that a browser plays it while loading and can jump in it.
        """
        import av

        options = {"movflags": "+faststart"}
        with av.open(str(self._path)) as source, av.open(str(complete), "w", options=options) as to:
            stream = source.streams.video[0]
            num_copied = 0
            copied = to.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copied
                    to.mux(packet)
                    num_copied += 1
        if num_copied < self._num_frames:
            # FFmpeg says nothing of what it could not write on closing a file.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _OpenCVEncoder:
    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._path = path
        code = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(path), code, fps, size[::-1])
        if not self._writer.isOpened():
            raise DataError(f"{path}: OpenCV cannot write this video; pip install av")

    def encode(self, frame: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()
        # OpenCV says nothing of a write that failed; an MP4 then lacks the index at its end.
        played = cv2.VideoCapture(str(self._path))
        whole = played.isOpened()
        played.release()
        if not whole:
            raise OSError(errno.EIO, "OpenCV left it unfinished; check the free space")

    def finish(self, complete: Path) -> None:
        """Move the closed file."""
        os.replace(self._path, complete)


def _make_encoder(
    path: Path, fps: float, size: tuple[int, int], quality: int
) -> _AvEncoder | _OpenCVEncoder:
    try:
        import av

        av.Codec("libx264", "w")
    except (ImportError, ValueError) as error:  # av's UnknownCodecError is a ValueError
        logger.warning(
            "PyAV with x264 is missing (%s): OpenCV writes MPEG-4 part 2, which browsers may not "
            "play; pip install av",
            error,
        )
        return _OpenCVEncoder(path, fps, size)
    return _AvEncoder(path, fps, size, quality)
