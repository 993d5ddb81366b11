"""Which frames serve as references, by frame numbers alone: the arithmetic of the built-in methods.

:mod:`clab_d2.data.reference_sampling` makes methods of them that a config names; exported models
(:mod:`clab_d2.runtime`), which know no config, call them by way of :class:`ReferenceFrames`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol


class FrameChoice(Protocol):
    """What a schedule of frames asks of a method; see
    :class:`clab_d2.data.reference_sampling.ReferenceSampling`."""

    reach: tuple[int, int] | None

    def references(self, num_frames: int, key: int) -> list[int]: ...


def check_frame(num_frames: int, key: int) -> None:
    """Raise a ValueError unless ``key`` is a frame of a video of ``num_frames``."""
    if not 0 <= key < num_frames:
        raise ValueError(f"key frame {key} is not in a video of {num_frames} frames")


def adaptive_frames(num_frames: int, key: int, num: int) -> list[int]:
    """``num`` frames spread over the video, then the key. With ``num`` 1 the middle one and the
    key."""
    check_frame(num_frames, key)
    return [*_spread(num_frames, num), key]


@functools.lru_cache(maxsize=256)
def _spread(num_frames: int, num: int) -> tuple[int, ...]:
    if num == 1:
        return ((num_frames - 1) // 2,)
    return tuple(round(i * (num_frames - 1) / (num - 1)) for i in range(num))


def fixed_frames(num_frames: int, key: int, num: int, stride: int) -> list[int]:
    """``num`` + 1 frames in order, on multiples of the stride but for the key in the middle."""
    check_frame(num_frames, key)
    each_side = num // 2
    base = key - key % stride
    steps = range(-each_side, each_side + 1)
    window = [min(max(base + i * stride, 0), num_frames - 1) for i in steps]
    window[each_side] = key
    return window


def fixed_reach(num: int, stride: int) -> tuple[int, int]:
    """How far before and after the key frame :func:`fixed_frames` go at most."""
    return num // 2 * stride + stride - 1, num // 2 * stride


def causal_frames(num_frames: int, key: int, num: int, stride: int) -> list[int]:
    """The last ``num`` multiples of the stride before the key frame, in order, then the key."""
    check_frame(num_frames, key)
    last = (key - 1) // stride * stride
    window = [max(last - i * stride, 0) for i in range(num - 1, -1, -1)]
    return [*window, key]


@dataclass(frozen=True)
class ReferenceFrames:
    """One of the methods above with its numbers.

    Attributes:
        sampling: "adaptive", "fixed" or "causal", as in ``TEST.REFERENCES.SAMPLING``.
        num, stride: as in ``TEST.REFERENCES``.
    """

    sampling: str
    num: int
    stride: int = 1

    @property
    def reach(self) -> tuple[int, int] | None:
        if self.sampling == "adaptive":
            return None
        return (
            fixed_reach(self.num, self.stride)
            if self.sampling == "fixed"
            else (self.num * self.stride, 0)
        )

    def references(self, num_frames: int, key: int) -> list[int]:
        """The frames that a key frame aggregates over."""
        if self.sampling == "adaptive":
            return adaptive_frames(num_frames, key, self.num)
        window = fixed_frames if self.sampling == "fixed" else causal_frames
        return window(num_frames, key, self.num, self.stride)
