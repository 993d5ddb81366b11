"""The frames of a training batch, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.structures import Instances
from torch import Tensor

from clab_d2.errors import DataError
from clab_d2.modeling.reference_memory import FrameFeatures, References

Clip = dict[str, Any]


class ClipBatch:
    """The images of a training batch, each once: key frames first, then references.

    A frame that serves a clip twice (both references of a still are the still itself) goes
    through the network once; the result is the same, as no layer mixes images.

    Attributes:
        clips: the batch.
        images: distinct images.
        keys: for each clip, the index of its key frame in ``images``.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = clips
        self.images: list[Tensor] = []
        self._index_of: dict[tuple[int, int], int] = {}
        for number, clip in enumerate(clips):
            self._add(number, clip["frame_id"])
        for number, clip in enumerate(clips):
            for frame_id in clip["reference_frame_ids"]:
                self._add(number, frame_id)
        self.keys = [self.index_of(n, clip["frame_id"]) for n, clip in enumerate(clips)]

    def _add(self, number: int, frame_id: int) -> None:
        clip = self.clips[number]
        if frame_id not in clip["images"]:
            raise DataError(
                f"frame {frame_id} of clip {clip.get('file_name', number)} came without its image"
            )
        if (number, frame_id) not in self._index_of:
            self._index_of[number, frame_id] = len(self.images)
            self.images.append(clip["images"][frame_id])

    def index_of(self, number: int, frame_id: int) -> int:
        """Index in ``images`` of a frame of clip ``number``."""
        return self._index_of[number, frame_id]

    def reference_indices(self) -> list[int]:
        """Indices of the images that serve as references, ascending."""
        return sorted({self.index_of(*place) for place in self._references()})

    def _references(self) -> Iterator[tuple[int, int]]:
        """(clip number, frame number) of all references, clip by clip, repeats included."""
        for number, clip in enumerate(self.clips):
            for frame_id in clip["reference_frame_ids"]:
                yield number, frame_id

    def in_order(self) -> list[tuple[int, int]]:
        """(clip number, frame number) of all frames as the release orders them: the key frames,
        then the references clip by clip; a frame that counts twice comes twice."""
        keys = [(number, clip["frame_id"]) for number, clip in enumerate(self.clips)]
        return [*keys, *self._references()]

    def truth(self, number: int, frame_id: int) -> Instances | None:
        """Ground truth of a frame of clip ``number``; None where it is not known."""
        return self.clips[number]["instances"].get(frame_id)

    def references_of(self, number: int, frames: Mapping[int, FrameFeatures]) -> References:
        """What clip ``number`` aggregates over.

        Args:
            number: the clip.
            frames: features by index in ``images``, those of all references.
        """
        counts = Counter(self.clips[number]["reference_frame_ids"])
        return References(
            [frames[self.index_of(number, frame_id)] for frame_id in counts],
            list(counts.values()),
        )
