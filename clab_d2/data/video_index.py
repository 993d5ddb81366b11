"""Where each frame of a video file is, found out once a file.

The frames are those that playing the file from start to end gives, in that order. Where the time
stamps can be trusted to tell which these are, the packets are read without decoding them; else the
file is decoded once: without exact time stamps (AVI, MPEG-TS), or where the stamps contradict each
other, as in pieces that were cut and joined without encoding them again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clab_d2.data.video_container import (
    PacketMark,
    decode_numbered,
    demux_packets,
    open_container,
    to_upright_rgb,
)
from clab_d2.errors import DataError
from clab_d2.io import atomic_write, refuse_special_file

if TYPE_CHECKING:
    import av

logger = logging.getLogger(__name__)

__all__ = ["KeyPackets", "VideoIndex", "cached_index"]

# In these containers every packet carries its time of display.
_CONTAINERS_WITH_TIMES = {"mov", "mp4", "matroska", "webm"}
# Codecs that turn each packet into exactly one displayed frame; others must be decoded to count
# (VP8 hides frames in packets of their own, MPEG-4 part 2 has packets that repeat a frame).
_ONE_FRAME_A_PACKET = {"h264", "hevc", "av1", "vp9", "mjpeg", "prores", "ffv1", "dnxhd", "png"}
# So many frames are decoded to see whether the packets' times tell the truth: a file may begin with
# frames that can't be shown, or have a packet for each field.
_NUM_COMPARED = 4

# An index that took longer than this to make is kept on disk for other processes and later runs.
_SLOW_INDEX_SECONDS = 0.5
# Who waits longer than this for an index is told why.
_LONG_SECONDS = 5.0
# Raise it whenever an index of the same file would be another one.
_INDEX_FORMAT = 3

_UNKNOWN = np.iinfo(np.int64).min  # a time or a position that a packet doesn't have


@dataclass(frozen=True)
class KeyPackets:
    """The K packets at which decoding can start, in order of the frames they hold; int64 (K,) each.

    Attributes:
        frame: number of the frame that the packet holds.
        packet: number of the packet, from 0, in the file's order.
        pts, dts: times of display and of decoding, in the stream's time base.
        position: in the file, in bytes.
        size: in bytes.
    """

    frame: np.ndarray
    packet: np.ndarray
    pts: np.ndarray
    dts: np.ndarray
    position: np.ndarray
    size: np.ndarray

    def by_mark(self) -> dict[PacketMark, int]:
        """Number of each packet by what it is recognised by, without those that look alike."""
        columns = zip(self.pts.tolist(), self.position.tolist(), self.size.tolist(), strict=True)
        marks = [PacketMark(_known(pts), _known(place), size) for pts, place, size in columns]
        count = Counter(marks)
        numbers = zip(marks, self.packet.tolist(), strict=True)
        return {mark: number for mark, number in numbers if count[mark] == 1}

    def ways_to(self, row: int) -> list[tuple[str, int]]:
        """By what a packet may be sought: ("pts", time), ("dts", time) or ("position", bytes)."""
        columns = {"pts": self.pts, "dts": self.dts, "position": self.position}
        known = {name: _known(int(column[row])) for name, column in columns.items()}
        if known["pts"] is not None or known["dts"] is not None:
            # By position only raw streams can be read, and MPEG-TS, which has times.
            del known["position"]
        return [(name, value) for name, value in known.items() if value is not None]


@dataclass(frozen=True)
class VideoIndex:
    """What must be known of a video file to find a frame by its number.

    Attributes:
        num_frames: frames that playing the file gives.
        packet_of_frame: (num_frames,) int64, the number of the packet that each frame is in. None
            where a packet gives several frames: these are found by counting from the file's start.
        packet_sizes: (P,) int32, size in bytes of each packet, to notice a jump that went astray.
        keys: where decoding can start; none if ``packet_of_frame`` is None.
        height, width: size of the first frame, upright, in pixels.
        fps: mean frames per second.
        times: (num_frames,) float64, seconds from the first frame; None where the file's time
            stamps are missing or do not rise.
    """

    num_frames: int
    packet_of_frame: np.ndarray | None
    packet_sizes: np.ndarray
    keys: KeyPackets
    height: int
    width: int
    fps: float
    times: np.ndarray | None = None

    def frame_of_packet(self) -> np.ndarray:
        """(P,) int64: the number of the frame that each packet holds, -1 for none."""
        frames = np.full(len(self.packet_sizes), -1, np.int64)
        if self.packet_of_frame is not None:
            frames[self.packet_of_frame] = np.arange(self.num_frames)
        return frames


_indices: dict[tuple[str, int, int], VideoIndex] = {}


def cached_index(path: str) -> VideoIndex:
    """The index of a file, from memory, from disk, or made now; one per content of the file.

    Raises:
        DataError: if the file is missing, is not a video or has no frame.
    """
    try:
        status = os.stat(path)
    except OSError:
        raise DataError(f"{path}: no such video file; check the path") from None
    refuse_special_file(path)
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


@dataclass(frozen=True)
class _Packets:
    """All packets of a file, in its order: (P,) each."""

    pts: np.ndarray
    dts: np.ndarray
    position: np.ndarray
    size: np.ndarray
    is_key: np.ndarray
    is_shown: np.ndarray  # what an edit list trims is decoded (others build on it), never shown

    @classmethod
    def of(cls, packets: Iterable[av.Packet]) -> _Packets:
        rows = [
            (
                _UNKNOWN if packet.pts is None else packet.pts,
                _UNKNOWN if packet.dts is None else packet.dts,
                _UNKNOWN if packet.pos is None else packet.pos,
                packet.size,
                packet.is_keyframe,
                not packet.is_discard,
            )
            for packet in packets
            if packet.size
        ]
        table = np.array(rows, np.int64).reshape(-1, 6)
        return cls(*table[:, :4].T, table[:, 4] > 0, table[:, 5] > 0)


def _make_index(path: str) -> VideoIndex:
    container, stream = open_container(path, threads=0)
    with container:
        may_tell = bool(_CONTAINERS_WITH_TIMES & set(container.format.name.split(",")))
        may_tell &= stream.codec_context.name in _ONE_FRAME_A_PACKET
        reorders = bool(stream.codec_context.has_b_frames)
        rate, time_base = stream.average_rate or stream.guessed_rate, stream.time_base
        packets = _Packets.of(demux_packets(container, stream))
    expected = _shown_by_time(packets, reorders) if may_tell else None
    container, stream = open_container(path, threads=0)
    with container:
        frames = decode_numbered(demux_packets(container, stream))
        first = next(frames, None)
        if first is None:
            raise DataError(
                f"{path}: no frame of the video can be decoded; remove it or encode it again"
            )
        height, width = to_upright_rgb(first).shape[:2]
        decoded = _packets_of(first, frames)
        beginning = list(islice(decoded, _NUM_COMPARED))
        if expected is not None and beginning == expected[:_NUM_COMPARED].tolist():
            shown = expected
        else:
            started = time.monotonic()
            shown = np.array([*beginning, *decoded], np.int64)
            seconds = time.monotonic() - started
            logger.log(
                logging.INFO if seconds > _LONG_SECONDS else logging.DEBUG,
                "%s: read once through to index its frames (%.0f s); nothing is wrong with it",
                path,
                seconds,
            )
    known = np.unique(shown)
    one_each = len(known) == len(shown) and known[0] >= 0 and known[-1] < len(packets.size)
    if not one_each:
        logger.info("%s: frames can only be counted; each jump decodes from the start", path)
    return VideoIndex(
        num_frames=len(shown),
        packet_of_frame=shown if one_each else None,
        packet_sizes=packets.size.astype(np.int32),
        keys=_key_packets(packets, shown if one_each else shown[:0]),
        height=height,
        width=width,
        fps=float(rate or 25),
        times=_times(packets.pts[shown], float(time_base)) if one_each and time_base else None,
    )


def _times(pts: np.ndarray, time_base: float) -> np.ndarray | None:
    if (pts == _UNKNOWN).any() or (np.diff(pts) <= 0).any():
        return None
    return (pts - pts[0]) * time_base


def _packets_of(first: av.VideoFrame, others: Iterator[av.VideoFrame]) -> Iterator[int]:
    yield -1 if first.pts is None else first.pts
    for frame in others:
        yield -1 if frame.pts is None else frame.pts


def _shown_by_time(packets: _Packets, reorders: bool) -> np.ndarray | None:
    """Numbers of the packets in the order in which they are shown, or None if times can't tell.

    They can if no two packets show at one time and each key packet parts the packets before it in
    the file from those after it in time, too: a decoder puts out all that it holds when it meets a
    key frame, so that time stamps going back at a joint don't take a frame back. And if the codec
    says that frames are shown in another order than the file's (``reorders``), so must the times:
    a file made from one that had no times of display may have those of decoding in their place.
    """
    pts, keys = packets.pts, np.flatnonzero(packets.is_key)
    if not len(pts) or not len(keys) or keys[0] != 0 or (pts == _UNKNOWN).any():
        return None
    order = np.argsort(pts, kind="stable")
    if (np.diff(pts[order]) == 0).any():
        return None
    if reorders and (np.diff(order) == 1).all():
        return None
    latest_before = np.maximum.accumulate(pts)
    earliest_after = np.minimum.accumulate(pts[::-1])[::-1]
    mixed = latest_before[keys[1:] - 1] >= earliest_after[keys[1:]]
    if pts[0] != earliest_after[0] or mixed.any():
        return None
    return order[packets.is_shown[order]]


def _key_packets(packets: _Packets, shown: np.ndarray) -> KeyPackets:
    keys = [n for n in range(len(shown)) if packets.is_key[shown[n]]]
    rows = shown[keys]
    columns = (packets.pts, packets.dts, packets.position, packets.size)
    return KeyPackets(np.array(keys, np.int64), rows, *(column[rows] for column in columns))


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value


def _index_file(key: tuple[str, int, int]) -> Path:
    folder = os.environ.get("CLAB_D2_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clab_d2"
    )
    digest = hashlib.sha256(repr((_INDEX_FORMAT, *key)).encode()).hexdigest()[:24]
    return Path(folder) / "video_index" / f"{digest}.npz"


def _load_index(path: Path) -> VideoIndex | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return VideoIndex(
                int(stored["num_frames"]),
                stored["packet_of_frame"] if stored["one_each"] else None,
                stored["packet_sizes"],
                KeyPackets(*(stored[f"key_{column.name}"] for column in fields(KeyPackets))),
                int(stored["height"]),
                int(stored["width"]),
                float(stored["fps"]),
                stored["times"] if len(stored["times"]) else None,
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent, or damaged: make it again


def _save_index(path: Path, index: VideoIndex) -> None:
    packets = index.packet_of_frame
    try:
        with atomic_write(path, "wb") as file:
            np.savez_compressed(
                file,
                num_frames=index.num_frames,
                one_each=packets is not None,
                packet_of_frame=packets if packets is not None else np.zeros(0, np.int64),
                packet_sizes=index.packet_sizes,
                height=index.height,
                width=index.width,
                fps=index.fps,
                times=index.times if index.times is not None else np.zeros(0),
                **{f"key_{name}": column for name, column in vars(index.keys).items()},
            )
    except OSError as error:  # a read-only home must not stop anyone
        logger.debug("index of the video not kept: %s", error)
