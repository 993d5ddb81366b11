"""Stable identities: the detections of a video, frame after frame, put into tracks."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from clab_d2.errors import ConfigError
from clab_d2.optional import import_optional
from clab_d2.runtime.detections import greedy_nms
from clab_d2.runtime.instances import ArrayInstances

if TYPE_CHECKING:
    from detectron2.structures import Instances

AnyInstances = TypeVar("AnyInstances", bound="Instances | ArrayInstances")


@dataclasses.dataclass(frozen=True)
class _Method:
    """How a method is called in the library, and what it is given.

    Attributes:
        class_name: of the library's class.
        options: beside the frame rate.
        uses_frames: whether it looks at the pictures, to tell the camera's motion.
        takes_appearance: whether it can go by looks, too.
    """

    class_name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    uses_frames: bool = False
    takes_appearance: bool = False


# A class's tracker begins with the class, not with the video; so no track is taken for granted at
# its first frame.
_PATIENT = {"instant_first_frame_activation": False}
_METHODS = {
    "bytetrack": _Method("ByteTrackTracker", takes_appearance=True),
    "botsort": _Method("BoTSORTTracker", _PATIENT, uses_frames=True, takes_appearance=True),
    "ocsort": _Method("OCSORTTracker"),
    "sort": _Method("SORTTracker"),
    "cbiou": _Method("CBIoUTracker", _PATIENT),
}

#: Names of the methods of tracking.
TRACKERS = tuple(_METHODS)

#: Detections below this score are not tracked: where ByteTrack's paper ("ByteTrack: Multi-Object
#: Tracking by Associating Every Detection Box", arXiv 2110.06864) takes its low scores to end.
LEAST_SCORE = 0.1
#: Nor are those that overlap a better one of their class by a larger IoU: trackers take each box
#: for an object, and the detectors' own NMS leaves several on one (measured in docs/detect.md).
NMS_THRESHOLD = 0.3


class Tracker:
    """Puts the detections of one video into tracks, by the library ``trackers``.

    It is given the frames one after the other, none left out, and looks at the past only. A track
    has one class: each class is tracked on its own. A detection gets a track's number once the
    track is confirmed, by default in the second or third frame in a row; until then, and where its
    score is too low or it repeats a better one, it has none.

    Args:
        method: one of :data:`TRACKERS`: "bytetrack" (ByteTrack), "botsort" (BoT-SORT, which makes
            up for the camera's motion), "ocsort" (OC-SORT), "sort", "cbiou" (C-BIoU); their numbers
            are the library's defaults.
        frame_rate: frames a second. A track that is lost is kept for a second.
        appearance: also go by what objects look like
            (:class:`clab_d2.video.appearance.AppearanceIoU`); bytetrack and botsort can.
        least_score: what is below it is not tracked; from 0, which tracks everything, to 1.
        nms_threshold: IoU with a better detection of its class above which one is not tracked; from
            0 to 1, which tracks everything.

    Raises:
        ConfigError: there is no such method, it does not go by looks, a threshold is not from 0 to
            1, or the library is not installed.
    """

    def __init__(
        self,
        method: str = "bytetrack",
        frame_rate: float = 30.0,
        appearance: bool = False,
        least_score: float = LEAST_SCORE,
        nms_threshold: float = NMS_THRESHOLD,
    ) -> None:
        if method not in _METHODS:
            raise ConfigError(f"tracker {method!r}: choose one of {', '.join(TRACKERS)}")
        for name, value in (("least_score", least_score), ("nms_threshold", nms_threshold)):
            if not 0 <= value <= 1:
                raise ConfigError(f"tracker: {name} is {value}; it must be from 0 to 1")
        self._least_score, self._nms_threshold = least_score, nms_threshold
        self._method = _METHODS[method]
        if appearance and not self._method.takes_appearance:
            able = (name for name, other in _METHODS.items() if other.takes_appearance)
            raise ConfigError(
                f"tracker {method!r} does not go by appearance; choose one of {', '.join(able)}"
            )
        self._appearance = appearance
        library = import_optional("trackers", "track", "tracking")
        self._supervision = import_optional("supervision", "track", "tracking")
        self._make = getattr(library, self._method.class_name)
        self._frame_rate = frame_rate if frame_rate > 0 else 30.0
        self._by_class: dict[int, Any] = {}
        # (class, number in its class) -> number in the video, from 1 in the order of appearance.
        self._numbers: dict[tuple[int, int], int] = {}
        self._given = itertools.count(1)

    def update(self, instances: AnyInstances, image: np.ndarray) -> AnyInstances:
        """The detections of the next frame, with their tracks.

        Args:
            instances: N detections on the CPU: ``pred_boxes``, ``scores``, ``pred_classes``, and
                with appearance ``appearance``, (N, D), each of length 1.
            image: the frame, RGB, uint8 (H, W, 3).

        Returns:
            The same detections in the same order, with ``track_ids``, int64 (N,): numbers from 1,
            each of one track of the video; -1 for a detection without a track.
        """
        classes = np.asarray(instances.pred_classes)
        boxes = np.asarray(instances.pred_boxes.tensor, dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(instances.scores, dtype=np.float64)
        candidates = self._worth_tracking(boxes, scores, classes)
        frame = np.ascontiguousarray(image[:, :, ::-1]) if self._method.uses_frames else None
        track_ids = np.full(len(instances), -1, dtype=np.int64)
        # Also a class that is not in this frame: its tracks age.
        for class_index in sorted({*classes[candidates].tolist(), *self._by_class}):
            if class_index not in self._by_class:
                self._by_class[class_index] = self._new_tracker()
            tracker = self._by_class[class_index]
            rows = candidates[classes[candidates] == class_index]
            if self._appearance:
                looks = np.asarray(instances.appearance)[rows] if len(rows) else np.zeros((0, 0))
                tracker.iou.begin(tracker, boxes[rows], scores[rows], looks)
            tracked = tracker.update(
                self._supervision.Detections(
                    xyxy=boxes[rows],
                    confidence=scores[rows],
                    class_id=classes[rows].astype(int),
                    data={"row": rows},
                ),
                **({"frame": frame} if frame is not None else {}),
            )
            if len(tracked):
                if self._appearance:
                    places = np.searchsorted(rows, tracked.data["row"])
                    tracker.iou.end(places, tracked.tracker_id)
                for row, number in zip(tracked.data["row"], tracked.tracker_id, strict=True):
                    if number >= 0:
                        track_ids[row] = self._number(class_index, int(number))
        result = type(instances)(instances.image_size, **instances.get_fields())
        result.track_ids = _like(instances, track_ids)
        return result

    def begin_shot(self) -> None:
        """End all tracks: the next frame is behind a cut. Numbers go on."""
        self._by_class = {}
        self._numbers = {}

    def _worth_tracking(
        self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray
    ) -> np.ndarray:
        """(K,) rising numbers of the detections that the trackers are given."""
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self._least_score]
        return np.sort(order[greedy_nms(boxes[order], classes[order], self._nms_threshold)])

    def _new_tracker(self) -> Any:
        options = dict(self._method.options)
        if self._appearance:
            from clab_d2.video.appearance import AppearanceIoU

            options["iou"] = AppearanceIoU()
        return self._make(frame_rate=self._frame_rate, **options)

    def _number(self, class_index: int, number: int) -> int:
        if (class_index, number) not in self._numbers:
            self._numbers[class_index, number] = next(self._given)
        return self._numbers[class_index, number]


def _like(instances: Instances | ArrayInstances, values: np.ndarray) -> Any:
    """Values as instances of this kind hold them: arrays or tensors."""
    if isinstance(instances, ArrayInstances):
        return values
    import torch

    return torch.from_numpy(values)
