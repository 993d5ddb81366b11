"""At test: when each frame of a video comes to the model, and how long the model keeps it.

The key frames of a video come in order. A frame is needed from the first of them that uses it,
as its reference or by being it, to the last one. Its image goes with the clip of the first, once;
the model computes its features then, and keeps them while a later key frame needs them. All of this
follows from :meth:`ReferenceSampling.frames` alone, whatever the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clab_d2.data.reference_frames import FrameChoice


class ScheduledFrames(NamedTuple):
    """The frames that one key frame has to do with.

    Attributes:
        references: what it aggregates over, repeats included.
        entering: those that no earlier key frame has used, itself included: their images come now.
        kept: those that have come so far and that a later key frame uses.
    """

    references: list[int]
    entering: list[int]
    kept: list[int]


class ReferenceSchedule:
    """The schedule of one video whose length is known."""

    def __init__(
        self,
        sampling: FrameChoice | None,
        num_frames: int,
        key_frames: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            sampling: chooses references; None for a single-frame detector, which has none.
            num_frames: length of the video.
            key_frames: ascending; all frames by default.
        """
        keys = range(num_frames) if key_frames is None else key_frames
        self._sampling = sampling
        self._num_frames = num_frames
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for key in keys:
            for frame in {*self._references(key), key}:
                first.setdefault(frame, key)
                last[frame] = key
        self._entering: dict[int, list[int]] = {}
        self._leaving: dict[int, list[int]] = {}
        for frame in sorted(first):
            self._entering.setdefault(first[frame], []).append(frame)
            self._leaving.setdefault(last[frame], []).append(frame)
        self._restart()

    def at(self, key: int) -> ScheduledFrames:
        """What the clip of a key frame holds and leaves behind; cheapest in ascending order."""
        if key < self._position:
            self._restart()
        for passed in range(self._position + 1, key + 1):
            self._kept.update(self._entering.get(passed, ()))
            self._kept.difference_update(self._leaving.get(passed, ()))
        self._position = key
        entering = self._entering.get(key, [])
        return ScheduledFrames(self._references(key), list(entering), sorted(self._kept))

    def _restart(self) -> None:
        self._position = -1
        self._kept: set[int] = set()

    def _references(self, key: int) -> list[int]:
        return self._sampling.references(self._num_frames, key) if self._sampling else []


class StreamSchedule:
    """The schedule of an endless stream, every frame of which is a key frame in its turn."""

    def __init__(self, sampling: FrameChoice | None) -> None:
        """
        Args:
            sampling: has a reach, and none ahead; None for a single-frame detector.
        """
        if sampling is not None and (sampling.reach is None or sampling.reach[1] > 0):
            raise ValueError(f"{type(sampling).__name__} needs frames that a stream has not yet")
        self._sampling = sampling

    def _references(self, key: int) -> list[int]:
        return self._sampling.references(key + 1, key) if self._sampling else []

    def at(self, key: int) -> ScheduledFrames:
        """As :meth:`ReferenceSchedule.at`."""
        reach = self._sampling.reach[0] if self._sampling and self._sampling.reach else 0
        later = {f for k in range(key + 1, key + reach + 1) for f in self._references(k)}
        return ScheduledFrames(
            self._references(key), [key], sorted(frame for frame in later if frame <= key)
        )
