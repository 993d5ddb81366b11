"""What is kept of a video's frames at test: the one place of state.

Everything on the reference side (feature maps, proposals, what an aggregation encodes of them)
depends on its own frame alone, so it is computed once a frame and kept here while a later key frame
needs it. The memory's size is bounded by the reach of the reference sampling, never by the length
of the video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from clab_d2.errors import DataError


@dataclass
class FrameFeatures:
    """All that a frame's detection, as key or as reference, needs of its image.

    Attributes:
        features: feature maps by name, (1, C, h, w); channels-last, where the model made them at
            test, as the aggregation takes them position by position.
        image_size: (height, width) of the image that went through the backbone, without padding.
        map_encoding: what the aggregation on maps encodes of the frame; empty without one.
        proposals: of the first stage, best first; None where they are not made yet.
        encoded: what the detector's head keeps of the frame as a reference: nested lists of
            tensors, in its own layout.
        appearance_map: (1, C', h, w), what embeddings of boxes are pooled from; None where nobody
            has asked for them.
        encoded_maps: what the aggregation on RoI features keeps of each map, by the map's name;
            made when the frame is first a reference.
    """

    features: dict[str, Tensor]
    image_size: tuple[int, int]
    map_encoding: Sequence[Tensor] = ()
    proposals: Instances | None = None
    encoded: Any = field(default_factory=list)
    appearance_map: Tensor | None = None
    encoded_maps: dict[str, Any] = field(default_factory=dict)


class RunningCat:
    """``torch.cat`` for parts of which few change from call to call: one in, one out.

    Each result is a buffer that the next call of the same name overwrites where a part changed.
    """

    def __init__(self) -> None:
        self._joined: dict[object, tuple[list[Tensor], Tensor]] = {}

    def __call__(self, name: object, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        """
        Args:
            name: what is joined; the parts of each name are compared with those of its last call.
            parts: tensors to join, left as they are from then on.
            dim: dimension to join them in.
        """
        if torch.is_grad_enabled():
            return torch.cat(list(parts), dim)
        before, buffer = self._joined.get(name, ([], None))
        if buffer is None or list(map(_layout, before)) != list(map(_layout, parts)):
            buffer = torch.cat(list(parts), dim)
        else:
            start = 0
            for old, new in zip(before, parts, strict=True):
                length = new.shape[dim]
                # The old part is alive, so its memory holds nothing else.
                if old.data_ptr() != new.data_ptr() or old.stride() != new.stride():
                    buffer.narrow(dim, start, length).copy_(new)
                start += length
        self._joined[name] = list(parts), buffer
        return buffer


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


@dataclass
class References:
    """The frames that a key frame aggregates over.

    Attributes:
        frames: distinct frames.
        counts: how often each counts: a frame drawn twice counts twice in every softmax.
        cat: joins what the frames have in common.
    """

    frames: list[FrameFeatures]
    counts: list[int]
    cat: RunningCat = field(default_factory=RunningCat)

    def __len__(self) -> int:
        return len(self.frames)

    def counts_of_proposals(self, like: Tensor) -> Tensor | None:
        """How often each proposal of all frames counts, (M,); None where all count alike.

        Args:
            like: tensor whose device and dtype the result takes.
        """
        if len(set(self.counts)) <= 1:
            return None
        return torch.repeat_interleave(
            torch.tensor(self.counts, device=like.device, dtype=like.dtype),
            torch.tensor([len(frame.proposals) for frame in self.frames], device=like.device),
        )


class ReferenceMemory:
    """Features of one video's frames, by frame number."""

    def __init__(self) -> None:
        self.clear()

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, frame_id: int) -> bool:
        return frame_id in self._frames

    def begin(self, video: tuple[object, ...], key_frames: Sequence[int]) -> None:
        """Forget everything unless these key frames of a video go on with what is kept.

        Args:
            video: tells the video from others.
            key_frames: numbers of the key frames that come now; those of a video ascend.
        """
        if video != self._video or key_frames[0] <= self._last_key:
            self.clear()
            self._video = video
        self._last_key = key_frames[-1]

    def clear(self) -> None:
        """Forget everything."""
        self._video: tuple[object, ...] | None = None
        self._last_key = -1
        self._frames: dict[int, FrameFeatures | None] = {}
        self._order: list[int] = []
        self._cat = RunningCat()

    def put(self, frame_id: int, frame: FrameFeatures | None) -> None:
        """Keep a frame; None marks one that could not be read."""
        self._frames[frame_id] = frame

    def get(self, frame_id: int) -> FrameFeatures | None:
        """The frame's features; None if it could not be read."""
        if frame_id not in self._frames:
            raise DataError(
                f"frame {frame_id} of video {self._video} is a reference but was never given to "
                "the model; feed a video's key frames in order, from its first"
            )
        return self._frames[frame_id]

    def references(self, frame_ids: Sequence[int]) -> References:
        """The frames of ``frame_ids``, repeats counted, unreadable ones left out.

        Their order means nothing to the aggregation; those of the last call keep their places, so
        that joining them copies only what is new.
        """
        counts = Counter(frame_ids)
        readable = {number: frame for number in counts if (frame := self.get(number)) is not None}
        entering = [number for number in readable if number not in self._order]
        order = []
        for number in self._order:
            if number in readable:
                order.append(number)
            elif entering:
                order.append(entering.pop(0))
        self._order = order + entering
        return References(
            [readable[number] for number in self._order],
            [counts[number] for number in self._order],
            self._cat,
        )

    def keep_only(self, frame_ids: Collection[int]) -> None:
        """Drop every frame that is not among ``frame_ids``."""
        wanted = set(frame_ids)
        self._frames = {key: value for key, value in self._frames.items() if key in wanted}
