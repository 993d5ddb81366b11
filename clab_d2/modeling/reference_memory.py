"""What is kept of a video's frames at test: the one place of state.

Everything on the reference side (feature map, proposals, keys and values of every SELSA block)
depends on its own frame alone, so it is computed once a frame and kept here while the frame may
still be asked for. The memory's size is bounded by the number of references, never by the length
of the video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from detectron2.structures import Instances
from torch import Tensor

from clab_d2.errors import DataError
from clab_d2.modeling.selsa import KeyValue


@dataclass
class FrameFeatures:
    """All that a frame's detection, as key or as reference, needs of its image.

    Attributes:
        features: feature maps by name, (1, C, h, w).
        proposals: RPN proposals, best first.
        encoded: keys and values of the proposals for each SELSA block; empty without SELSA.
    """

    features: dict[str, Tensor]
    proposals: Instances
    encoded: list[KeyValue] = field(default_factory=list)


@dataclass
class References:
    """The frames that a key frame aggregates over.

    Attributes:
        frames: distinct frames.
        counts: how often each counts: a frame drawn twice counts twice in every softmax.
    """

    frames: list[FrameFeatures]
    counts: list[int]

    def __len__(self) -> int:
        return len(self.frames)


class ReferenceMemory:
    """Features of one video's frames, by frame number."""

    def __init__(self) -> None:
        self._video: tuple[object, ...] | None = None
        self._frames: dict[int, FrameFeatures | None] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, frame_id: int) -> bool:
        return frame_id in self._frames

    def begin(self, video: tuple[object, ...], frame_id: int) -> None:
        """Forget everything if ``frame_id`` of ``video`` starts a video or continues another."""
        if video != self._video or frame_id == 0:
            self._video = video
            self._frames = {}

    def clear(self) -> None:
        """Forget everything."""
        self._video = None
        self._frames = {}

    def put(self, frame_id: int, frame: FrameFeatures | None) -> None:
        """Keep a frame; None marks one that could not be read."""
        self._frames[frame_id] = frame

    def get(self, frame_id: int) -> FrameFeatures | None:
        """The frame's features; None if it could not be read."""
        if frame_id not in self._frames:
            raise DataError(
                f"frame {frame_id} of video {self._video} is a reference but was never given to "
                "the model; feed a video's frames in order, from frame 0"
            )
        return self._frames[frame_id]

    def references(self, frame_ids: Sequence[int]) -> References:
        """The frames of ``frame_ids``, repeats counted, unreadable ones left out."""
        readable = {
            frame_id: (self.get(frame_id), count) for frame_id, count in Counter(frame_ids).items()
        }
        kept = [(frame, count) for frame, count in readable.values() if frame is not None]
        return References([frame for frame, _ in kept], [count for _, count in kept])

    def keep_only(self, frame_ids: Collection[int]) -> None:
        """Drop every frame that is not among ``frame_ids``."""
        wanted = set(frame_ids)
        self._frames = {key: value for key, value in self._frames.items() if key in wanted}
