"""Opening and decoding video files with PyAV, and what a picture of theirs looks like upright.

:mod:`.video_frames` finds frames by number, :mod:`.video_index` knows where they are; only this
module talks to the decoder.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clab_d2.errors import DataError
from clab_d2.io import refuse_special_file

if TYPE_CHECKING:
    import av

logger = logging.getLogger(__name__)

# Before 17, files tagged as BT.709 (most HD ones) were read as BT.601. 17.0.0 leaves decoders to
# garbage collection, which in a forked data-loading worker waits for the parent's threads for ever.
OLDEST_PYAV = (17, 0, 1)

__all__ = [
    "OLDEST_PYAV",
    "LostPlaceError",
    "PacketMark",
    "decode_numbered",
    "demux_packets",
    "open_container",
    "seek",
    "to_upright_rgb",
]


class PacketMark(NamedTuple):
    """What a packet is recognised by wherever reading began: each is None where unknown.

    Decoding times are not among it: after a jump, some demuxers guess them anew.
    """

    pts: int | None
    position: int | None  # in the file, in bytes
    size: int

    @classmethod
    def of(cls, packet: av.Packet) -> PacketMark:
        return cls(packet.pts, packet.pos, packet.size)


class LostPlaceError(Exception):
    """After a jump the packets are not those that reading from the start gave."""


def open_container(
    path: str, threads: int, timeout: float | None = None, name: str | None = None
) -> tuple[Any, Any]:
    """Open a video file; return the container and its first video stream.

    Args:
        path: the file, or a URL.
        threads: decoding threads; 0 lets FFmpeg choose.
        timeout: seconds to wait for a URL's answer, and for each read; None: for ever.
        name: what messages call it, if not by its path.

    Raises:
        DataError: if the file is missing, no regular file, or holds no video.
    """
    av = _import_av()
    # PyAV's default, which importing torchvision 0.19 changes: else decoding threads write their
    # messages through Python, for which one may wait while the thread that has Python waits for it.
    av.logging.set_level(None)
    if os.path.isdir(path):
        raise DataError(f"{name or path}: a folder, not a video file")
    refuse_special_file(path)
    try:
        container = av.open(path, timeout=timeout)
    except FileNotFoundError:
        raise DataError(f"{name or path}: no such video file; check the path") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{name or path}: cannot be opened as a video ({reason}); it is damaged, incomplete or "
            "of an unknown kind"
        ) from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{name or path}: holds no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "NONE" if threads == 1 else "AUTO"
    stream.codec_context.thread_count = threads
    return container, stream


def demux_packets(container: Any, stream: Any) -> Iterator[av.Packet]:
    """The stream's packets from where the container stands; the empty one that flushes is last."""
    errors = _import_av().error
    # Looked up now: at Python's exit, which also ends this generator, it is gone.
    any_error = errors.FFmpegError
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except any_error:
            return  # damaged beyond what the demuxer can step over: the same as the end
        if packet is None:
            return
        yield packet


def decode_numbered(
    packets: Iterable[av.Packet], first: int = 0, sizes: np.ndarray | None = None
) -> Iterator[av.VideoFrame]:
    """Decode; each frame's ``pts`` becomes the number of the packet that it was in.

    A decoder hands a packet's time on to the frame, unread. So a number in its place tells which
    frame this is, whatever the time stamps are: missing, repeated or going back.

    Args:
        packets: in the file's order.
        first: number of the first of them, counted from 0 at the file's start.
        sizes: (N,) sizes of all the file's packets in bytes, to be compared if given.

    Yields:
        Frames in the order in which the decoder puts them out, which is that of display; packets
        that cannot be decoded are passed over.

    Raises:
        LostPlaceError: a packet has another size than ``sizes`` says.
    """
    errors = _import_av().error
    damage, any_error = (errors.EOFError, errors.InvalidDataError, ValueError), errors.FFmpegError
    numbers = itertools.count(first)
    for packet in packets:
        if packet.size:
            number = next(numbers)
            if sizes is not None and (number >= len(sizes) or packet.size != sizes[number]):
                raise LostPlaceError
            packet.pts = number
        try:
            yield from packet.decode()
        except damage:
            continue
        except any_error as error:
            logger.debug("packet not decoded: %s", error)


def seek(container: Any, stream: Any, where: int, by_position: bool = False) -> bool:
    """Jump to a time of the stream or a position in bytes; return False where that is impossible.

    Where the container then stands, only the next packet tells: see :class:`PacketMark`.
    """
    try:
        if by_position:
            container.seek(where, unsupported_byte_offset=True)
        else:
            container.seek(where, stream=stream, backward=True)
    except (_import_av().error.FFmpegError, OSError, OverflowError):
        return False
    return True


def to_upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Return a frame as players show it, turned and mirrored as the file asks: uint8 (H, W, 3)."""
    # One thread: a reader in a data-loading worker has one core, and FFmpeg's threads would not
    # survive a fork.
    image = frame.to_ndarray(format="rgb24", threads=1)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    return _display(image, np.frombuffer(bytes(matrix), np.int32))


def _display(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a display matrix: nine numbers (a, b, u, c, d, v, x, y, w), row by row.

    A pixel at (x, y) is shown at (ax + cy, bx + dy), up to a shift. Phones store the sensor's
    orientation in this way, front cameras a mirror image. Other angles than quarter turns are taken
    for the next one.
    """
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _import_av() -> Any:
    remedy = f'pip install "av>={".".join(map(str, OLDEST_PYAV))}"'
    try:
        import av
    except ImportError:
        raise DataError(
            f"reading video files needs PyAV: {remedy} (or extract the frames into a folder)"
        ) from None
    numbers = re.match(r"\d+\.\d+\.\d+", av.__version__)  # else unknown: taken for new enough
    if numbers and tuple(map(int, numbers.group().split("."))) < OLDEST_PYAV:
        raise DataError(
            f"PyAV {av.__version__} is too old: it shows some videos in wrong colours, or stops "
            f"data workers; run {remedy}"
        )
    return av
