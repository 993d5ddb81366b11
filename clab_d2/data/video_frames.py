"""Frames of video files by number: any order, exactly the frames that playing the file gives.

A frame of a video file is named ``<video file>#<index>`` (``clips/bikes.mp4#12``), with the index
counted from 0 in the order of display, so that a dataset can be annotated on videos directly and
nobody has to unpack them into pictures.

Why not ``cv2.VideoCapture.set(CAP_PROP_POS_FRAMES)``: it computes a time from the number and the
mean frame rate, and lands on a neighbour where the rate varies, where frames are reordered
(B-frames) or where an edit list trims the start. Here an index of every frame's time stamp is made
first, by reading the packets without decoding them; a frame is then found by its own time stamp.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clab_d2.errors import DataError
from clab_d2.io import atomic_write

if TYPE_CHECKING:
    import av

logger = logging.getLogger(__name__)

__all__ = [
    "VIDEO_SUFFIXES",
    "VideoFrameReader",
    "VideoIndex",
    "is_video_file",
    "read_video_frame",
    "split_frame_name",
]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv"}
    | {".flv", ".ogv", ".3gp"}
)

# In these containers every packet carries its time of display.
_CONTAINERS_WITH_TIMES = {"mov", "mp4", "matroska", "webm"}
# Codecs that turn each packet into exactly one displayed frame; others must be decoded to count
# (VP8 hides frames in packets of their own, MPEG-4 part 2 has packets that repeat a frame).
_ONE_FRAME_A_PACKET = {"h264", "hevc", "av1", "vp9", "mjpeg", "prores", "ffv1", "dnxhd", "png"}

# How many key frames to go back at most, in the last of several tries, for a frame that won't come.
_MAX_STEP_BACK = 8

# Frames passed on the way to another are kept for a while, as the next one wanted is often among
# them: a clip's key frame is read before the reference ahead of it (INPUT.REFERENCES.RANGE is 9).
_MAX_RECENT = 10
_MAX_RECENT_BYTES = 64 * 2**20

# An index that took longer than this to make is kept on disk for other processes and later runs.
_SLOW_INDEX_SECONDS = 0.5
_INDEX_FORMAT = 1


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


@dataclass(frozen=True)
class VideoIndex:
    """What must be known of a video file to find a frame by its number.

    Attributes:
        num_frames: frames that can be displayed.
        pts: time stamps (int64, in the stream's time base) of the frames in order of display, or
            None where the file has no usable time stamps: it is then decoded from its start.
        keyframe_pts: sorted time stamps of the frames at which decoding can start.
        height, width: size of the first frame, upright, in pixels.
        fps: mean frames per second.
    """

    num_frames: int
    pts: np.ndarray | None
    keyframe_pts: np.ndarray
    height: int
    width: int
    fps: float


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
        self._frames: Iterator[av.VideoFrame] | None = None
        self._ahead: av.VideoFrame | None = None  # decoded while looking for an earlier frame
        self._next = 0  # number of the first frame that decoding on can still give
        self._sought = False  # whether decoding began elsewhere than at the file's start
        self._undecodable: set[int] = set()
        self._recent: OrderedDict[int, av.VideoFrame] = OrderedDict()  # by time stamp or number
        self._whole_from: int | None = None  # time stamp from which on decoded frames are whole
        self._last: tuple[int, np.ndarray] | None = None
        self._index = _cached_index(self.path)
        self.height, self.width, self.fps = (
            self._index.height,
            self._index.width,
            self._index.fps,
        )

    def __len__(self) -> int:
        return self._index.num_frames

    @property
    def exact_seek(self) -> bool:
        """Whether a jump goes to a key frame nearby, rather than to the file's start."""
        return self._index.pts is not None

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
        image = _to_rgb(frame)
        self._last = (index, image)
        return image.copy()

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
        self._container, self._stream = _open_container(self.path, self._threads)
        self._process = os.getpid()
        self._next, self._sought, self._last, self._whole_from = 0, False, None, None
        self._recent.clear()
        self._decode_on()

    def _rewind(self) -> None:
        self._container.close()
        self._open()

    def _decode_on(self) -> None:
        """Decode from wherever the container now stands."""
        self._ahead = None
        self._frames = _decoded_frames(self._container, self._stream)

    def _decode(self, index: int) -> av.VideoFrame | None:
        if self._index.pts is None:
            return self._decode_by_counting(index)
        keyframes = self._index.keyframe_pts
        target = int(self._index.pts[index])
        if target in self._recent:
            return self._recent[target]
        slot = int(np.searchsorted(keyframes, target, side="right")) - 1
        start = int(keyframes[slot]) if slot >= 0 else None
        behind = index < self._next
        skips_a_keyframe = (
            start is not None
            and self._next < len(self)
            and start > int(self._index.pts[self._next])
        )
        if behind or skips_a_keyframe:
            self._seek(target, slot)
        frame = self._decode_forwards(index, target)
        # With a rolling refresh of the picture in place of true key frames, a decoder needs more
        # than one of them before its pictures are whole: start from further back.
        step_back = 1
        while frame is None and self._sought and step_back <= _MAX_STEP_BACK:
            slot -= step_back
            step_back *= 2
            self._seek(target, slot)
            frame = self._decode_forwards(index, target)
        return frame

    def _seek(self, target: int, slot: int) -> None:
        """Go to a key frame displayed no later than ``target``.

        A demuxer may seek by decoding time and so overshoot; and after a jump to an open group of
        pictures the frames *displayed before* its key frame come out broken. Both are excluded by
        checking that the first packet is a key frame displayed at or before the target.
        """
        keyframes = self._index.keyframe_pts
        while slot >= 0:
            self._container.seek(int(keyframes[slot]), stream=self._stream, backward=True)
            first = next(
                (p for p in self._container.demux(self._stream) if p.size and p.pts is not None),
                None,
            )
            if first is not None and first.is_keyframe and first.pts <= target:
                # The packet was only looked at; go there again to decode it.
                self._container.seek(int(keyframes[slot]), stream=self._stream, backward=True)
                self._next = int(np.searchsorted(self._index.pts, first.pts, side="left"))
                self._sought = True
                self._whole_from = int(first.pts)
                self._decode_on()
                return
            slot -= 1
        self._rewind()

    def _decode_forwards(self, index: int, target: int) -> av.VideoFrame | None:
        while True:
            frame = self._ahead if self._ahead is not None else next(self._frames, None)
            self._ahead = None
            if frame is None:
                self._next = len(self)  # at the file's end: any later read seeks
                return None
            if frame.pts is None:
                continue
            if frame.pts <= target and (self._whole_from is None or frame.pts >= self._whole_from):
                self._keep(frame.pts, frame)
            if frame.pts < target:
                continue
            if frame.pts == target:
                self._next = index + 1
                return frame
            # The target did not come out, a later frame did: keep that one for the next read.
            self._ahead = frame
            self._next = index + 1
            return None

    def _keep(self, key: int, frame: av.VideoFrame) -> None:
        self._recent[key] = frame
        size = sum(plane.buffer_size for plane in frame.planes)
        while len(self._recent) > max(1, min(_MAX_RECENT, _MAX_RECENT_BYTES // max(size, 1))):
            self._recent.popitem(last=False)

    def _decode_by_counting(self, index: int) -> av.VideoFrame | None:
        if index in self._recent:
            return self._recent[index]
        if index < self._next:
            self._rewind()
        frame = None
        while self._next <= index:
            frame = next(self._frames, None)
            self._next += 1
            if frame is None:
                return None
            self._keep(self._next - 1, frame)
        return frame


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


def _import_av() -> Any:
    try:
        import av
    except ImportError:
        raise DataError(
            "reading video files needs PyAV: pip install av (or extract the frames into a folder)"
        ) from None
    return av


def _open_container(path: str, threads: int) -> tuple[Any, Any]:
    av = _import_av()
    if os.path.isdir(path):
        raise DataError(f"{path}: a folder, not a video file")
    try:
        container = av.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such video file; check the path") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path}: cannot be opened as a video ({reason}); it is damaged, incomplete or of an "
            "unknown kind"
        ) from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: holds no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "NONE" if threads == 1 else "AUTO"
    stream.codec_context.thread_count = threads
    return container, stream


def _decoded_frames(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    """Frames in order of display; packets that cannot be decoded are passed over."""
    errors = _import_av().error
    # Looked up now: at Python's exit, which also ends this generator, they are gone.
    damage, any_error = (errors.EOFError, errors.InvalidDataError, ValueError), errors.FFmpegError
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except any_error:
            return  # damaged beyond what the demuxer can step over: the same as the end
        if packet is None:
            return
        try:
            yield from packet.decode()
        except damage:
            continue
        except any_error as error:
            logger.debug("%s: packet not decoded: %s", container.name, error)


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    try:
        # One thread: a reader in a data-loading worker has one core, and FFmpeg's threads would
        # not survive a fork.
        image = frame.to_ndarray(format="rgb24", threads=1)
    except TypeError:  # an older PyAV, which knows no other way
        image = frame.to_ndarray(format="rgb24")
    # Phones store the sensor's orientation and ask the player to turn it (counter-clockwise).
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


_indices: dict[tuple[str, int, int], VideoIndex] = {}


def _cached_index(path: str) -> VideoIndex:
    """The index of a file, from memory, from disk, or made now; one per content of the file."""
    try:
        status = os.stat(path)
    except OSError:
        raise DataError(f"{path}: no such video file; check the path") from None
    key = (os.path.realpath(path), status.st_size, status.st_mtime_ns)
    index = _indices.get(key)
    if index is None:
        stored = _index_file(key)
        index = _load_index(stored)
        if index is None:
            started = time.monotonic()
            index = _make_index(path)
            if time.monotonic() - started > _SLOW_INDEX_SECONDS:
                _save_index(stored, index)
        _indices[key] = index
    return index


def _make_index(path: str) -> VideoIndex:
    container, stream = _open_container(path, threads=0)
    with container:
        timed = bool(_CONTAINERS_WITH_TIMES & set(container.format.name.split(",")))
        one_a_packet = stream.codec_context.name in _ONE_FRAME_A_PACKET
        rate = stream.average_rate or stream.guessed_rate
        shown, keyframes = _packet_times(container, stream)
    container, stream = _open_container(path, threads=0)
    with container:
        frames = _decoded_frames(container, stream)
        first = next(frames, None)
        if first is None:
            raise DataError(
                f"{path}: no frame of the video can be decoded; remove it or encode it again"
            )
        if not (timed and one_a_packet) or None in shown:
            shown = [first.pts, *(frame.pts for frame in frames)]
        height, width = _to_rgb(first).shape[:2]
    if timed and None not in shown and len(set(shown)) == len(shown):
        pts, keyframe_pts = np.sort(np.array(shown, np.int64)), np.unique(keyframes)
    else:
        logger.info("%s: no exact time stamps; it is decoded from its start at each jump", path)
        pts, keyframe_pts = None, np.zeros(0, np.int64)
    return VideoIndex(len(shown), pts, keyframe_pts, height, width, float(rate or 25))


def _packet_times(container: Any, stream: Any) -> tuple[list[int | None], np.ndarray]:
    """Display times of all packets that are shown, and of those where decoding can start."""
    av = _import_av()
    shown: list[int | None] = []
    keyframes: list[int] = []
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            break  # a file cut off: what came before can be read
        if packet is None:
            break
        if not packet.size:
            continue
        if packet.is_keyframe and packet.pts is not None:
            keyframes.append(packet.pts)
        # What an edit list trims is decoded (others build on it) but never shown.
        if not packet.is_discard:
            shown.append(packet.pts)
    return shown, np.array(keyframes, np.int64)


def _index_file(key: tuple[str, int, int]) -> Path:
    folder = os.environ.get("CLAB_D2_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clab_d2"
    )
    digest = hashlib.sha256(repr((_INDEX_FORMAT, *key)).encode()).hexdigest()[:24]
    return Path(folder) / "video_index" / f"{digest}.npz"


def _load_index(path: Path) -> VideoIndex | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            pts = stored["pts"] if stored["timed"] else None
            return VideoIndex(
                int(stored["num_frames"]),
                pts,
                stored["keyframe_pts"],
                int(stored["height"]),
                int(stored["width"]),
                float(stored["fps"]),
            )
    except (OSError, ValueError, KeyError, EOFError):
        return None  # absent, or damaged: make it again


def _save_index(path: Path, index: VideoIndex) -> None:
    try:
        with atomic_write(path, "wb") as file:
            np.savez(
                file,
                num_frames=index.num_frames,
                timed=index.pts is not None,
                pts=index.pts if index.pts is not None else np.zeros(0, np.int64),
                keyframe_pts=index.keyframe_pts,
                height=index.height,
                width=index.width,
                fps=index.fps,
            )
    except OSError as error:  # a read-only home must not stop anyone
        logger.debug("index of the video not kept: %s", error)
