"""Which frames of a video serve as references of a key frame: one class a method.

Frames are numbered from 0. A method is pure arithmetic on these numbers: it knows nothing of
images or tensors. What a test needs beyond it, when each frame is first and last used, follows from
the frames themselves: see :mod:`clab_d2.data.reference_schedule`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from numbers import Integral
from typing import Any

from detectron2.config import CfgNode, configurable

from clab_d2.data.reference_frames import (
    adaptive_frames,
    causal_frames,
    check_frame,
    fixed_frames,
    fixed_reach,
)
from clab_d2.errors import ConfigError, PartError
from clab_d2.registry import Registry

REFERENCE_SAMPLING_REGISTRY = Registry("REFERENCE_SAMPLING", "REFERENCES.SAMPLING")
REFERENCE_SAMPLING_REGISTRY.__doc__ = """
Methods of choosing reference frames, by their names in ``INPUT.REFERENCES.SAMPLING`` (training) and
``TEST.REFERENCES.SAMPLING``. An entry is a :class:`ReferenceSampling`, called as
``entry(cfg, references)`` with one of the two config nodes.
"""


class ReferenceSampling(ABC):
    """A method of choosing the reference frames of a key frame.

    Attributes:
        is_random: whether two calls may give different frames. At test they may not.
        reach: how many frames before and after the key frame references lie at most; None where
            they may lie anywhere in the video. A live stream, which has only its past, can be
            detected in by a method whose reach ahead is 0.
    """

    is_random: bool = False
    reach: tuple[int, int] | None = None

    @abstractmethod
    def frames(self, num_frames: int, key: int) -> list[int]:
        """The frames that a key frame aggregates over.

        Args:
            num_frames: length of the video. In a live stream, of what there is of it so far.
            key: the key frame, 0 <= key < num_frames.

        Returns:
            Frame numbers, at least one. One that is listed twice counts twice. The key frame may be
            among them: at test the built-in methods list it, as the official release does.
        """

    def references(self, num_frames: int, key: int) -> list[int]:
        """:meth:`frames`, held to what a method promises; all else in the package asks here.

        Raises:
            PartError: there are none, or some are not in the video or beyond the ``reach``.
        """
        frames = self.frames(num_frames, key)
        first, last = 0, num_frames - 1
        if self.reach is not None:
            first, last = max(key - self.reach[0], 0), min(key + self.reach[1], last)
        wrong = [f for f in frames if not isinstance(f, Integral) or not first <= f <= last]
        if wrong or not frames:
            reach = "" if self.reach is None else f" (its reach is {tuple(self.reach)})"
            raise PartError(
                f"{type(self).__name__}.frames gives {f'frame {wrong[0]}' if wrong else 'no frame'}"
                f" for key frame {key} of a video of {num_frames}{reach}, where one or more from "
                f"{first} to {last} are due; see docs/extend.md"
            )
        return [int(frame) for frame in frames]


def build_reference_sampling(cfg: CfgNode, is_train: bool) -> ReferenceSampling:
    """Build what ``INPUT.REFERENCES`` (training) or ``TEST.REFERENCES`` names.

    Raises:
        ConfigError: the method is unknown, its numbers make no sense, or it is random at test.
    """
    section, references = (
        ("INPUT", cfg.INPUT.REFERENCES) if is_train else ("TEST", cfg.TEST.REFERENCES)
    )
    try:
        sampling = REFERENCE_SAMPLING_REGISTRY.build(
            references.SAMPLING, ReferenceSampling, cfg, references
        )
    except ConfigError as error:
        raise type(error)(f"{section}.{error}") from None
    if sampling.is_random and not is_train:
        raise ConfigError(
            f"TEST.REFERENCES.SAMPLING is {references.SAMPLING!r}, which draws at random; "
            "choose a method that always gives the same frames, such as adaptive"
        )
    return sampling


def _at_least(key: str, value: int, least: int = 1) -> int:
    if value < least:
        raise ConfigError(f"REFERENCES.{key} is {value}; it must be at least {least}")
    return value


@REFERENCE_SAMPLING_REGISTRY.register(name="random")
class RandomReferences(ReferenceSampling):
    """Frames drawn at random near the key frame, half of them from each side: for training.

    The paper's training has 2 of them within 9 frames; see docs/method.md, "Reference frames".
    """

    is_random = True

    @configurable
    def __init__(self, num: int = 2, frame_range: int = 9) -> None:
        """
        Args:
            num: how many references. An odd one out goes to a side drawn at random.
            frame_range: how many frames to each side may be drawn.
        """
        self.num = _at_least("NUM", num)
        self.reach = (_at_least("RANGE", frame_range), frame_range)

    @classmethod
    def from_config(cls, cfg: CfgNode, references: CfgNode) -> dict[str, Any]:
        return {"num": references.NUM, "frame_range": references.RANGE}

    def frames(
        self, num_frames: int, key: int, rng: random.Random | None = None
    ) -> list[int]:
        """``num`` frames, those before the key first, never the key itself.

        A side with fewer frames than its half gives all it has, and the frames found are repeated
        until there are ``num``; the key frame stands in where it is the only frame.

        Args:
            num_frames, key: see :meth:`ReferenceSampling.frames`.
            rng: source of randomness; by default seeded from Python's global state, which each
                data-loading worker has of its own.
        """
        check_frame(num_frames, key)
        rng = random.Random(random.getrandbits(64)) if rng is None else rng
        frame_range = self.reach[0]
        before = range(max(key - frame_range, 0), key)
        after = range(key + 1, min(key + frame_range, num_frames - 1) + 1)
        take_before = take_after = self.num // 2
        if self.num % 2:
            extra_before = rng.random() < 0.5
            take_before += extra_before
            take_after += not extra_before
        found = sorted(rng.sample(before, min(take_before, len(before))))
        found += sorted(rng.sample(after, min(take_after, len(after))))
        if not found:  # none on the side that was to give one: the other side, else the key itself
            others = [*before, *after]
            found = [rng.choice(others)] if others else [key]
        return [found[i % len(found)] for i in range(self.num)]


@REFERENCE_SAMPLING_REGISTRY.register(name="adaptive")
class AdaptiveReferences(ReferenceSampling):
    """Frames spread evenly over the whole video, the same for all its key frames, and the key.

    "Adaptive stride" of MMTracking: reference i of n is frame ``round(i * (T - 1) / (n - 1))``,
    half to even, so that a video shorter than n repeats frames.
    """

    @configurable
    def __init__(self, num: int = 14) -> None:
        """
        Args:
            num: how many references, the key frame not counted.
        """
        self.num = _at_least("NUM", num)

    @classmethod
    def from_config(cls, cfg: CfgNode, references: CfgNode) -> dict[str, Any]:
        return {"num": references.NUM}

    def frames(self, num_frames: int, key: int) -> list[int]:
        """``num`` + 1 frames, the key last. With ``num`` 1 the video's middle frame and the key."""
        return adaptive_frames(num_frames, key, self.num)


@REFERENCE_SAMPLING_REGISTRY.register(name="fixed")
class FixedStrideReferences(ReferenceSampling):
    """A window of frames on both sides of the key frame, a stride apart, the key in the middle.

    The window lies on the grid of multiples of the stride, so that it moves only at every
    ``stride``-th key frame; in between, the key frame takes the middle place. Frames beyond the
    video are clamped to its first or last one.
    """

    @configurable
    def __init__(self, num: int = 14, stride: int = 1) -> None:
        """
        Args:
            num: how many references, half of them on each side.
            stride: frames between two of them.
        """
        self.num = _at_least("NUM", num)
        self.stride = _at_least("STRIDE", stride)
        if num % 2:
            raise ConfigError(
                f"REFERENCES.NUM is {num}; fixed sampling takes half before and half after the "
                "key frame, so it must be even"
            )
        self.reach = fixed_reach(num, stride)

    @classmethod
    def from_config(cls, cfg: CfgNode, references: CfgNode) -> dict[str, Any]:
        return {"num": references.NUM, "stride": references.STRIDE}

    def frames(self, num_frames: int, key: int) -> list[int]:
        """``num`` + 1 frames in order, the key in the middle."""
        return fixed_frames(num_frames, key, self.num, self.stride)


@REFERENCE_SAMPLING_REGISTRY.register(name="causal")
class CausalReferences(ReferenceSampling):
    """The last multiples of the stride before the key frame, and the key: what a stream has.

    Every frame but the key has been a key frame before, so a stream never has to go back to a frame
    that it let go. Before the video's start, frame 0 stands in.
    """

    @configurable
    def __init__(self, num: int = 14, stride: int = 1) -> None:
        """
        Args:
            num: how many references, the key frame not counted.
            stride: frames between two of them.
        """
        self.num = _at_least("NUM", num)
        self.stride = _at_least("STRIDE", stride)
        self.reach = (num * stride, 0)

    @classmethod
    def from_config(cls, cfg: CfgNode, references: CfgNode) -> dict[str, Any]:
        return {"num": references.NUM, "stride": references.STRIDE}

    def frames(self, num_frames: int, key: int) -> list[int]:
        """``num`` + 1 frames in order, the key last."""
        return causal_frames(num_frames, key, self.num, self.stride)
