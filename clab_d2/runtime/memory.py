"""What is kept of a video's frames, in plain arrays: the one place of state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clab_d2.errors import DataError


@dataclass
class FrameArrays:
    """What the frame's graph gave for one frame.

    Attributes:
        image_size: (height, width) of the image without padding.
        own: what the frame needs as key frame, by name; emptied once it has been one.
        shared: what it contributes as a reference, by name.
    """

    image_size: tuple[int, int]
    own: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]


class JoinedFrames:
    """Arrays of several frames, joined along an axis of their own, of which few change from call to
    call: a frame that stays keeps its place, and only what is new is copied."""

    def __init__(self, axes: Mapping[str, int]) -> None:
        """
        Args:
            axes: name of an array -> the axis, of the joined one, that counts frames.
        """
        self._axes = dict(axes)
        self._joined: dict[str, np.ndarray] = {}
        self._places: list[FrameArrays] = []

    def clear(self) -> None:
        """Let go of everything."""
        self._joined, self._places = {}, []

    def join(self, frames: Sequence[FrameArrays]) -> tuple[dict[str, np.ndarray], list[int]]:
        """
        Args:
            frames: distinct frames whose arrays have the same shapes.

        Returns:
            The joined arrays by name, not to be kept beyond the next call, and for each place the
            number, in ``frames``, of the frame that is there.
        """
        places = self._new_places(frames)
        if len(places) != len(self._places) or not self._fits(frames[0]):
            places = list(frames)
            self._joined = {
                name: np.stack([frame.shared[name] for frame in places], axis=axis)
                for name, axis in self._axes.items()
            }
        else:
            for place, (old, new) in enumerate(zip(self._places, places, strict=True)):
                if old is not new:
                    for name, axis in self._axes.items():
                        into = (slice(None),) * axis + (place,)
                        self._joined[name][into] = new.shared[name]
        self._places = places
        number = {id(frame): index for index, frame in enumerate(frames)}
        return self._joined, [number[id(frame)] for frame in places]

    def _new_places(self, frames: Sequence[FrameArrays]) -> list[FrameArrays]:
        wanted = {id(frame): frame for frame in frames}
        stay = {id(frame) for frame in self._places if id(frame) in wanted}
        entering = [frame for frame in frames if id(frame) not in stay]
        places = []
        for frame in self._places:
            if id(frame) in stay:
                places.append(frame)
            elif entering:
                places.append(entering.pop(0))
        return places + entering

    def _fits(self, frame: FrameArrays) -> bool:
        """Whether a frame's arrays are of the shapes that the joined ones are made of."""
        return all(
            self._joined[name].shape[:axis] + self._joined[name].shape[axis + 1 :]
            == frame.shared[name].shape
            for name, axis in self._axes.items()
        )


class FrameMemory:
    """A video's frames by number."""

    def __init__(self, axes: Mapping[str, int]) -> None:
        """Args: as :class:`JoinedFrames`."""
        self._joined = JoinedFrames(axes)
        self.begin(None)

    def begin(self, video: object) -> None:
        """Forget everything unless ``video`` is the one that is kept."""
        if video is None or video != self._video:
            self._video = video
            self._frames: dict[int, FrameArrays | None] = {}
            self._joined.clear()

    def put(self, number: int, frame: FrameArrays | None) -> None:
        """Keep a frame; None marks one that could not be read."""
        self._frames[number] = frame

    def get(self, number: int) -> FrameArrays | None:
        """A frame that was given; None if it could not be read."""
        if number not in self._frames:
            raise DataError(
                f"frame {number} is a reference but was never given to the model; feed a video's "
                "key frames in order, from its first"
            )
        return self._frames[number]

    def references(
        self, numbers: Sequence[int], key: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What a key frame aggregates over.

        Args:
            numbers: frames, repeats included. Those that could not be read, and those of another
                size than the key frame, are left out; if none is left, the key frame stands in.
            key: the key frame.

        Returns:
            Arrays of T distinct frames, joined, by name, and (T,) float32, how often each counts.
        """
        own = self.get(key)
        assert own is not None
        counted: Counter[int] = Counter()
        for number in numbers:
            frame = self.get(number)
            if frame is not None and _same_shapes(frame, own):
                counted[number] += 1
        counted = counted or Counter([key])
        chosen = list(counted)
        frames = [self.get(number) for number in chosen]
        joined, order = self._joined.join(frames)  # type: ignore[arg-type]
        return joined, np.array([counted[chosen[index]] for index in order], np.float32)

    def keep_only(self, numbers: Collection[int]) -> None:
        """Drop every frame that is not among ``numbers``."""
        wanted = set(numbers)
        self._frames = {key: value for key, value in self._frames.items() if key in wanted}


def _same_shapes(one: FrameArrays, other: FrameArrays) -> bool:
    return all(one.shared[name].shape == array.shape for name, array in other.shared.items())
