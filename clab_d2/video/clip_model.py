"""What a :class:`VideoDetector` asks of a model, whatever runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from clab_d2.data.reference_frames import FrameChoice

#: Which frames may help a frame: see :meth:`clab_d2.video.detector.VideoDetector.detect`.
Mode = Literal["offline", "windowed", "online"]


class ClipModel(ABC):
    """A model that takes clips, and what has to be known to make them.

    Attributes:
        class_names: by class number.
        batch_size: key frames of a video that go through it together.
        postprocessing: gives all frames' instances of a whole video, or shot, other scores; None
            for none.
        finds_shots: whether cuts are looked for unless asked otherwise.
        has_appearance: whether its detections can have embeddings that tell objects apart.
    """

    class_names: list[str]
    batch_size: int = 1
    postprocessing: Callable[[Sequence[Any]], list[Any]] | None = None
    finds_shots: bool = False
    has_appearance: bool = False

    @abstractmethod
    def sampling_for(self, mode: Mode) -> FrameChoice | None:
        """Which frames serve as references; None for a single-frame detector."""

    @abstractmethod
    def prepare(self, image: np.ndarray) -> Any:
        """A frame, RGB, uint8 (H, W, 3), as it stands in a clip's ``images``."""

    @abstractmethod
    def detect(self, clips: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Instances on the CPU for each of the clips, which are of one video and in order."""


def sampling_of_mode(
    mode: Mode,
    configured: FrameChoice | None,
    window: Callable[[], FrameChoice],
    past: Callable[[], FrameChoice],
) -> FrameChoice | None:
    """The method that a model is set to, unless the mode asks for another reach.

    Args:
        mode: see :data:`Mode`.
        configured: what the model is set to.
        window: makes a window around the key frame.
        past: makes one of past frames only.
    """
    if configured is None or mode == "offline":
        return configured
    reach = configured.reach
    if mode == "windowed":
        # What has a reach is a window already; "causal" is one of the past.
        return window() if reach is None else configured
    return configured if reach is not None and reach[1] == 0 else past()
