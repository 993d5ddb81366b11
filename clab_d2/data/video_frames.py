"""Frames of video files by number: any order, exactly the frames that playing the file gives.

A frame of a video file is named ``<video file>#<index>`` (``clips/bikes.mp4#12``), with the index
counted from 0 in the order of display, so that a dataset can be annotated on videos directly and
nobody has to unpack them into pictures.

Why not ``cv2.VideoCapture.set(CAP_PROP_POS_FRAMES)``: it computes a time from the number and the
mean frame rate, and lands on a neighbour where the rate varies, where frames are reordered
(B-frames) or where an edit list trims the start. Here an index tells in which packet of the file
each frame is (see :mod:`.video_index`), and a frame is known by its packet.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clab_d2.data.video_container import (
    LostPlaceError,
    PacketMark,
    decode_numbered,
    demux_packets,
    open_container,
    seek,
    to_upright_rgb,
)
from clab_d2.data.video_index import cached_index
from clab_d2.errors import DataError

if TYPE_CHECKING:
    import av

__all__ = [
    "VIDEO_SUFFIXES",
    "VideoFrameReader",
    "is_video_file",
    "read_video_frame",
    "split_frame_name",
]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv"}
    | {".flv", ".ogv", ".3gp"}
)

# How many key frames to go back at most, in the last of several tries, for a frame that won't come.
_MAX_STEP_BACK = 8

# Frames passed on the way to another are kept for a while, as the next one wanted is often among
# them: a clip's key frame is read before the reference ahead of it (INPUT.REFERENCES.RANGE is 9).
_MAX_RECENT = 10
_MAX_RECENT_BYTES = 64 * 2**20


def is_video_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name's suffix is that of a video file."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def split_frame_name(file_name: str) -> tuple[str, int] | None:
    """Split ``<video file>#<index>`` into its parts; None for any other name.

    Only a name whose part before the last ``#`` has a video's suffix counts, so that pictures with
    a ``#`` in their names stay pictures.
    """
    path, separator, index = file_name.rpartition("#")
    if not separator or not index.isdecimal() or not is_video_file(path):
        return None
    return path, int(index)


class VideoFrameReader:
    """Random access to the frames of one video file.

    Reading forwards costs one decoded frame a read; a jump costs the decoding from the key frame
    before the target; a short way back, within what was decoded last, costs nothing. The file is
    opened at the first read in each process, so that a reader may be created before a fork and used
    on both sides. Not for several threads at once.

    Args:
        path: the video file.
        threads: decoding threads; 0 lets FFmpeg choose, 1 is right in data-loading workers.

    Attributes:
        height, width: size of the first frame, upright, in pixels.
        fps: mean frames per second.

    Raises:
        DataError: if the file is missing, is not a video or has no frame.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = os.fspath(path)
        self._threads = threads
        self._process = -1
        self._container: Any = None
        self._stream: Any = None
        self._frames: Iterator[tuple[int, av.VideoFrame]] | None = None  # numbered
        # Decoded while looking for an earlier frame.
        self._ahead: tuple[int, av.VideoFrame] | None = None
        self._next = 0  # number of the first frame that decoding on can still give
        self._whole_from = 0  # number from which on decoded frames are whole
        self._sought = False  # whether decoding began elsewhere than at the file's start
        self._way: str | None = None  # how the last successful jump was done
        self._may_seek = True
        self._undecodable: set[int] = set()
        self._recent: OrderedDict[int, av.VideoFrame] = OrderedDict()  # by number
        self._last: tuple[int, np.ndarray] | None = None
        self._index = cached_index(self.path)
        self._frame_of_packet = self._index.frame_of_packet()
        self._packet_of_mark = self._index.keys.by_mark()
        self.height, self.width, self.fps = (
            self._index.height,
            self._index.width,
            self._index.fps,
        )

    def __len__(self) -> int:
        return self._index.num_frames

    def read(self, index: int) -> np.ndarray:
        """Return frame ``index`` as RGB, uint8 (H, W, 3), turned upright.

        Raises:
            IndexError: if ``index`` is not in [0, len).
            DataError: if the frame cannot be decoded; other frames may still be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(
                f"{self.path}: no frame {index}; the video has frames 0 to {len(self) - 1}"
            )
        if self._process != os.getpid():
            self._open()
        if self._last is not None and self._last[0] == index:
            return self._last[1].copy()
        frame = None if index in self._undecodable else self._decode(index)
        if frame is None:
            self._undecodable.add(index)
            raise DataError(
                f"{self.path}#{index}: the frame cannot be decoded; the file is damaged there, "
                "fetch or encode it again"
            )
        image = to_upright_rgb(frame)
        self._last = (index, image)
        return image.copy()

    def timestamp(self, index: int) -> float:
        """Seconds from the first frame to frame ``index``, by the file's time stamps.

        Where these tell nothing, by the mean frame rate.
        """
        times = self._index.times
        return index / self.fps if times is None else float(times[index])

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._process not in (-1, os.getpid()):
            _of_parent_process.append((self._container, self._stream, self._frames, self._ahead))
        elif self._container is not None:
            self._container.close()
        self._process = -1
        self._container = self._stream = self._frames = self._ahead = self._last = None
        self._recent.clear()

    def forget_recent(self) -> None:
        """Let go of the frames decoded last; the file stays open."""
        self._recent.clear()

    def __enter__(self) -> VideoFrameReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state.update(_process=-1, _container=None, _stream=None, _frames=None, _ahead=None)
        state.update(_last=None, _recent=OrderedDict())
        return state

    def _open(self) -> None:
        if self._process not in (-1, os.getpid()):
            # Opened before a fork: to close it here would wait for threads of the parent's.
            _of_parent_process.append((self._container, self._stream, self._frames, self._ahead))
        self._container, self._stream = open_container(self.path, self._threads)
        self._process = os.getpid()
        self._last = None
        self._recent.clear()
        self._decode_on(demux_packets(self._container, self._stream))

    def _rewind(self) -> None:
        self._container.close()
        self._open()

    def _decode_on(
        self, packets: Iterator[av.Packet], first_packet: int = 0, first_frame: int = 0
    ) -> None:
        """Decode from wherever the container now stands; ``first_*`` say where that is."""
        self._ahead = None
        self._next = self._whole_from = first_frame
        self._sought = first_packet > 0
        sizes = self._index.packet_sizes if self._sought else None
        frames = decode_numbered(packets, first_packet, sizes)
        if self._index.packet_of_frame is None:
            self._frames = zip(itertools.count(), frames, strict=False)
        else:
            self._frames = _shown(frames, self._frame_of_packet)

    def _decode(self, index: int) -> av.VideoFrame | None:
        if index in self._recent:
            return self._recent[index]
        keys = self._index.keys.frame
        row = int(np.searchsorted(keys, index, side="right")) - 1
        if index < self._next or (row >= 0 and keys[row] > self._next):
            self._seek(row)
        frame = self._decode_forwards(index)
        # With a rolling refresh of the picture in place of true key frames, a decoder needs more
        # than one of them before its pictures are whole: start from further back.
        step_back = 1
        while frame is None and self._sought and step_back <= _MAX_STEP_BACK:
            row -= step_back
            step_back *= 2
            self._seek(row)
            frame = self._decode_forwards(index)
        return frame

    def _seek(self, row: int) -> None:
        """Go to a key packet of the index, to one before it, or to the file's start.

        A demuxer may seek by decoding time and so overshoot, or come nowhere near where time stamps
        go back: the first key packet tells where it is. It must hold no later frame than ``row``
        does, since after a jump to an open group of pictures the frames *shown before* its key
        frame come out broken.
        """
        keys = self._index.keys
        step_back, target = 1, row
        while row >= 0 and self._may_seek:
            # What worked last is tried first.
            ways = sorted(keys.ways_to(row), key=lambda way: way[0] != self._way)
            for way, where in ways:
                if seek(self._container, self._stream, where, by_position=way == "position") and (
                    self._land(target)
                ):
                    self._way = way
                    return
            row -= step_back
            step_back *= 2
        if target > 0 and self._way is None:
            self._may_seek = False  # nothing ever worked: don't try again for each frame
        self._rewind()

    def _land(self, row: int) -> bool:
        """After a jump, decode on if that led to a key packet known, up to that of ``row``."""
        keys = self._index.keys
        packets = demux_packets(self._container, self._stream)
        first = next((packet for packet in packets if packet.size and packet.is_keyframe), None)
        number = self._packet_of_mark.get(PacketMark.of(first)) if first is not None else None
        if number is None:
            return False
        frame = int(self._frame_of_packet[number])
        if frame > keys.frame[row]:
            return False
        self._decode_on(itertools.chain([first], packets), number, frame)
        return True

    def _decode_forwards(self, index: int) -> av.VideoFrame | None:
        try:
            return self._next_with_number(index)
        except LostPlaceError:
            self._may_seek = False
            self._rewind()
            return self._next_with_number(index)

    def _next_with_number(self, index: int) -> av.VideoFrame | None:
        while True:
            number, frame = self._ahead or next(self._frames, (None, None))
            self._ahead = None
            if frame is None:
                self._next = len(self)  # at the file's end: any later read seeks
                return None
            if self._whole_from <= number <= index:
                self._keep(number, frame)
            if number < index:
                continue
            self._next = index + 1
            if number == index:
                return frame
            # The target did not come out, a later frame did: keep that one for the next read.
            self._ahead = (number, frame)
            return None

    def _keep(self, number: int, frame: av.VideoFrame) -> None:
        self._recent[number] = frame
        size = sum(plane.buffer_size for plane in frame.planes)
        while len(self._recent) > max(1, min(_MAX_RECENT, _MAX_RECENT_BYTES // max(size, 1))):
            self._recent.popitem(last=False)


def _shown(
    frames: Iterator[av.VideoFrame], frame_of_packet: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of those frames that playing the file shows.

    No method, as a reader that its own generator held would end in a garbage collection: maybe in
    a forked process, where closing a decoder waits for threads that are not there.
    """
    for frame in frames:
        # A file that is still being written to may have got more packets.
        if frame.pts is None or frame.pts >= len(frame_of_packet):
            continue
        number = int(frame_of_packet[frame.pts])
        if number >= 0:
            yield number, frame


def read_video_frame(file_name: str) -> np.ndarray:
    """Read the frame that ``<video file>#<index>`` names: RGB, uint8 (H, W, 3).

    Keeps the last few videos open in each process (and thread), so that frames of one clip, or
    of one video at test, do not open the file again.

    Raises:
        DataError: if the name is not of this form, or the file or the frame cannot be read.
    """
    parts = split_frame_name(file_name)
    if parts is None:
        raise DataError(f"{file_name}: not a frame of a video file; write <video file>#<index>")
    path, index = parts
    try:
        return _readers(path).read(index)
    except IndexError as error:
        raise DataError(f"{error} (asked for by {file_name}): correct the annotations") from None


_of_parent_process: list[Any] = []

_MAX_OPEN_VIDEOS = 8
_open_videos = threading.local()


def _readers(path: str) -> VideoFrameReader:
    """The reader of ``path``, from a small least-recently-used set of open ones."""
    readers: OrderedDict[str, VideoFrameReader] | None = getattr(_open_videos, "readers", None)
    if readers is None:
        readers = _open_videos.readers = OrderedDict()
    if readers and next(reversed(readers)) != path:
        next(reversed(readers.values())).forget_recent()
    reader = readers.pop(path, None)
    if reader is None:
        reader = VideoFrameReader(path)
    readers[path] = reader
    while len(readers) > _MAX_OPEN_VIDEOS:
        readers.popitem(last=False)[1].close()
    return reader
