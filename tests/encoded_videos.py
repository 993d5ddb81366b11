"""Video files for tests, made with PyAV itself rather than with what is tested."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np


def moving_pictures(num_frames: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames that differ from each other everywhere: RGB uint8 (height, width, 3)."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    ground = blocks.repeat(8, axis=0).repeat(8, axis=1)
    frames = []
    for number in range(num_frames):
        frame = np.roll(ground, 3 * number, axis=1)
        frame[: height // 4] = (number * 5) % 256
        frames.append(frame)
    return frames


def encode(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    keyframe_every: int = 12,
    b_frames: int = 3,
    times: Sequence[int] | None = None,
    kinds: str = "",
) -> Path:
    """Write a video file.

    Args:
        path: its suffix chooses the container.
        frames: RGB uint8 (H, W, 3), of even sizes.
        codec: FFmpeg's name of the encoder.
        options: the encoder's own options.
        keyframe_every, b_frames: structure of the stream.
        times: when each frame shows, in 1/25 s; default one after another.
        kinds: "I", "P" or "B" for each of the first frames; the encoder chooses the others'.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.max_b_frames = b_frames
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts = times[number]
            if number < len(kinds):
                picture.pict_type = av.video.frame.PictureType[kinds[number]]
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def encode_colour(
    path: Path, colour: Sequence[int], matrix: int, luma: tuple[float, float]
) -> Path:
    """Write a video of one colour, converted here by the equations of the standard that it names.

    Args:
        path: its suffix chooses the container.
        colour: RGB, 0 to 255.
        matrix: the number that files name the standard by (ITU-T H.273, table 4).
        luma: what red and blue weigh in the luma.
    """
    red, green, blue = (value / 255 for value in colour)
    y = luma[0] * red + (1 - sum(luma)) * green + luma[1] * blue
    cb, cr = (blue - y) / (2 - 2 * luma[1]), (red - y) / (2 - 2 * luma[0])
    planes = np.full((72, 64), round(16 + 219 * y), np.uint8)  # 48 rows, then both chromas
    planes[48:60], planes[60:] = round(128 + 224 * cb), round(128 + 224 * cr)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 1  # 16 to 235
        container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def play(path: Path) -> list[np.ndarray]:
    """All frames of a video file as playing it from start to end gives them."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def join_without_encoding(
    path: Path, source: Path, pieces: Sequence[tuple[int, int, float]]
) -> Path:
    """Join pieces of a video as a lossless cutter does: its packets, with shifted time stamps.

    A piece cut out without encoding begins at a key frame before the place asked for, and ends
    amid a group of pictures, in the file's order. Joining takes the asked-for lengths for the
    pieces' own, so that the time stamps of neighbours overlap. A packet whose decoding time would
    go back then gets the earliest that is allowed, and is displayed no earlier than that.

    Args:
        path: the file to write; its suffix chooses the container.
        source: a file with B-frames.
        pieces: (first packet, number of packets, when it begins in 1/25 s) of each.
    """
    with av.open(str(source)) as opened:
        stream = opened.streams.video[0]
        packets = [packet for packet in opened.demux(stream) if packet.size]
        stamps = [(packet.pts, packet.dts) for packet in packets]
        with av.open(str(path), "w") as container:
            copy = container.add_stream_from_template(stream)
            step = int(path.suffix != ".mkv")  # Matroska stores no decoding times
            last = -(10**9)
            for first, count, start in pieces:
                shift = round(start / 25 / stream.time_base) - stamps[first][0]
                for number in range(first, first + count):
                    pts, dts = (stamp + shift for stamp in stamps[number])
                    last = max(dts, last + step)
                    packet = av.Packet(bytes(packets[number]))
                    packet.pts, packet.dts = max(pts, last), last
                    packet.time_base = stream.time_base
                    packet.is_keyframe = packets[number].is_keyframe
                    packet.stream = copy
                    container.mux(packet)
    return path


def set_display_matrix(path: Path, matrix: Sequence[int]) -> Path:
    """Write (a, b, c, d) of a display matrix, each -1, 0 or 1, into the track of an MP4."""
    content = bytearray(path.read_bytes())
    # After the box's name: version and flags, times, track, duration, and 16 bytes more.
    place = content.index(b"tkhd") + 4 + 4 + 8 + 8 + 4 + 16
    assert content[place - 40] == 0, "version 1 has longer times"
    a, b, c, d = (int(value) << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
