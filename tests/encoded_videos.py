"""Video files for tests, made with PyAV itself rather than with what is tested."""

from __future__ import annotations

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
    rotation: int = 0,
) -> Path:
    """Write a video file.

    Args:
        path: its suffix chooses the container.
        frames: RGB uint8 (H, W, 3), of even sizes.
        codec: FFmpeg's name of the encoder.
        options: the encoder's own options.
        keyframe_every, b_frames: structure of the stream.
        times: when each frame shows, in 1/25 s; default one after another.
        rotation: what players are asked to turn it by, counter-clockwise, in degrees.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts = times[number]
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def play(path: Path) -> list[np.ndarray]:
    """All frames of a video file as playing it from start to end gives them."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
