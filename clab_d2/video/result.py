"""What a detector says about one frame of a video."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clab_d2.optional import import_optional
from clab_d2.visualization import DrawStyle, draw_detections

if TYPE_CHECKING:
    import supervision
    from detectron2.structures import Instances

    from clab_d2.runtime.instances import ArrayInstances


@dataclass(frozen=True, eq=False)
class FrameResult:
    """One frame of a video and what was found in it (docs/detect.md).

    Attributes:
        image: the frame as read, RGB, uint8 (H, W, 3). Not to be written to.
        index: its number in the video, from 0.
        timestamp: seconds since the video's first frame: by the file's time stamps, where it has
            them, and by the clock for a camera or live stream. None where nothing tells.
        instances: N detections, on the CPU: ``pred_boxes`` (x1 y1 x2 y2 in pixels of ``image``),
            ``scores`` (0 to 1, falling), ``pred_classes``; with tracking ``track_ids``, int64 (N,),
            -1 for a box without a track; with appearance ``appearance``, (N, D) embeddings of
            length 1. Detectron2's ``Instances``; of an exported model
            :class:`clab_d2.runtime.instances.ArrayInstances`, arrays under the same names.
        class_names: by class number.
        video: what the source is called; tells videos apart where several are detected in.
        shot: which shot of the video it is in, from 0; 0 where cuts are not looked for.
    """

    image: np.ndarray
    index: int
    timestamp: float | None
    instances: Instances | ArrayInstances
    class_names: Sequence[str]
    video: str = "frames"
    shot: int = 0

    def __iter__(self) -> Iterator[Any]:
        """``frame, instances = result``, which is what programs of earlier versions write."""
        return iter((self.image, self.instances))

    @property
    def track_ids(self) -> list[int | None] | None:
        """Each detection's track, None for one without; None if nothing was tracked."""
        if not self.instances.has("track_ids"):
            return None
        ids = self.instances.track_ids.tolist()
        return [number if number >= 0 else None for number in ids]

    def above(self, score_threshold: float) -> FrameResult:
        """The same frame with the detections of at least this score."""
        kept = self.instances[self.instances.scores >= score_threshold]
        return dataclasses.replace(self, instances=kept)

    def to_supervision(self) -> supervision.Detections:
        """The detections as supervision's ``Detections``, for its annotators, zones and counters.

        Returns:
            ``xyxy`` (N, 4), ``confidence`` (N,), ``class_id`` (N,), the names in
            ``data["class_name"]``; with tracking ``tracker_id`` (N,), -1 for a box without a track.

        Raises:
            ConfigError: supervision is not installed.
        """
        sv = import_optional("supervision", "video", "FrameResult.to_supervision")
        found = self.instances
        classes = np.asarray(found.pred_classes).astype(int)
        names = np.array([self.class_names[index] for index in classes], dtype=str)
        tracks = np.asarray(found.track_ids).astype(int) if found.has("track_ids") else None
        return sv.Detections(
            xyxy=np.asarray(found.pred_boxes.tensor).astype(np.float32).reshape(-1, 4),
            confidence=np.asarray(found.scores).astype(np.float32),
            class_id=classes,
            tracker_id=tracks,
            data={"class_name": names},
        )

    def draw(
        self, score_threshold: float = 0.5, scale: float = 1, style: DrawStyle | None = None
    ) -> np.ndarray:
        """The frame with its detections of at least ``score_threshold`` drawn on a copy of it.

        Args:
            score_threshold: from 0 to 1.
            scale: enlarge the frame by this first.
            style: colours by class or track, what the labels show, sizes.

        Returns:
            RGB, uint8 (round(H * scale), round(W * scale), 3).

        Raises:
            ConfigError: supervision, whose annotators draw, is not installed.
        """
        return draw_detections(
            self.image, self.instances, self.class_names, score_threshold, scale, style
        )
