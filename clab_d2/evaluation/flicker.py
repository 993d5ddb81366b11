"""How much detections flicker: what a viewer sees of a video that AP does not tell.

AP judges each frame on its own. Two detectors of equal AP may look very different when their boxes
are drawn: one shows an object steadily, another under changing names, with frames in which it is
gone, or in a box that shakes. This is measured along the tracks of the ground truth; see
docs/evaluation.md, "Flicker". Pure functions of NumPy arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from clab_d2.evaluation.boxes import paired_iou, xywh_to_xyxy
from clab_d2.evaluation.detections import Detections
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.evaluation.matching import find_candidates, lay_out, match_greedily

#: An object is found by a detection that overlaps it by this or more.
FOUND_IOU = 0.5


@dataclass(frozen=True)
class Flicker:
    """How detections behave along the tracks of the truth, in percent; NaN where nothing tells.

    Attributes:
        found: objects that are found, of all in tracks.
        class_changes: of the steps from one frame to the next in which an object is found in both,
            those in which it gets another class.
        gaps: frames in which an object is not found, of those from the first to the last in which
            it is.
        jitter: how far a box's corners shake, of the object's size: the second difference over
            three neighbouring frames of the corner less the truth's own corner, its length, the
            mean over both corners and all such frames, over the square root of the object's area.
    """

    found: float
    class_changes: float
    gaps: float
    jitter: float

    def as_dict(self) -> dict[str, float]:
        """By the names of ``metrics.json`` and the tables."""
        return {
            "found": self.found,
            "class-changes": self.class_changes,
            "gaps": self.gaps,
            "jitter": self.jitter,
        }


def measure_flicker(
    truth: GroundTruth, detections: Detections, score_threshold: float = 0.5
) -> Flicker:
    """Follow the detections along each track of the truth.

    Args:
        truth: crowds, and objects without identity or frame number, are in no track. Neighbouring
            frames are those next to each other among a video's annotated ones.
        detections: in the annotated frames.
        score_threshold: only detections of at least this score are looked at, as if drawn.
    """
    rows = np.flatnonzero(detections.score >= score_threshold)
    objects = np.flatnonzero(~truth.crowd)
    found_by = find_objects(
        truth.image[objects],
        xywh_to_xyxy(truth.box[objects]),
        detections.image[rows],
        xywh_to_xyxy(detections.box[rows]),
        detections.score[rows],
    )
    in_track = (truth.identity[objects] >= 0) & (truth.frame_of_image[truth.image[objects]] >= 0)
    objects, found_by = objects[in_track], found_by[in_track]
    image = truth.image[objects]
    return flicker_along_tracks(
        video=truth.video_of_image[image],
        identity=truth.identity[objects],
        position=annotated_positions(truth)[image],
        box=xywh_to_xyxy(truth.box[objects]),
        found=found_by >= 0,
        found_box=xywh_to_xyxy(detections.box[rows])[found_by] if len(rows) else None,
        found_class=detections.class_index[rows][found_by] if len(rows) else None,
    )


def annotated_positions(truth: GroundTruth) -> np.ndarray:
    """(I,) int64: each annotated frame's position among those of its video; else -1."""
    images = np.flatnonzero(truth.annotated)
    order = images[np.lexsort((truth.frame_of_image[images], truth.video_of_image[images]))]
    video = truth.video_of_image[order]
    position = np.full(len(truth.annotated), -1, dtype=np.int64)
    position[order] = np.arange(len(order)) - np.searchsorted(video, video)
    return position


def find_objects(
    object_image: np.ndarray,
    object_box: np.ndarray,
    image: np.ndarray,
    box: np.ndarray,
    score: np.ndarray,
) -> np.ndarray:
    """Which detection finds which object, whatever their classes.

    In each frame, by falling score, each detection takes the free object that it overlaps most, if
    by :data:`FOUND_IOU` or more (IoU of plain rectangles).

    Args:
        object_image, object_box: (M,) and (M, 4) xyxy, of the objects.
        image, box, score: (N,), (N, 4) xyxy and (N,), of the detections.

    Returns:
        (M,) the detection that finds each object, or -1.
    """
    layout = lay_out(
        object_image, np.zeros(len(object_image), int), image, np.zeros(len(image), int), score, 1
    )
    candidates = find_candidates(
        layout,
        object_box[layout.gt_order],
        box,
        lambda boxes, objects, _: paired_iou(boxes, objects),
        FOUND_IOU,
    )
    match = match_greedily(candidates, len(layout.rival), np.zeros(len(object_image), dtype=bool))
    taken = np.flatnonzero(match >= 0)
    found_by = np.full(len(object_image), -1, dtype=np.int64)
    found_by[layout.gt_order[match[taken]]] = layout.order[layout.rival[taken]]
    return found_by


def flicker_along_tracks(
    video: np.ndarray,
    identity: np.ndarray,
    position: np.ndarray,
    box: np.ndarray,
    found: np.ndarray,
    found_box: np.ndarray | None,
    found_class: np.ndarray | None,
) -> Flicker:
    """Measure along tracks.

    Args:
        video, identity, position: (M,) each object's video, which object of it, and the position of
            its frame.
        box: (M, 4) xyxy of the object.
        found: (M,) bool.
        found_box, found_class: (M, 4) xyxy and (M,) of what finds it, anything where nothing does;
            None if nothing is found at all.
    """
    count = len(video)
    if found_box is None or found_class is None:
        return Flicker(0.0 if count else math.nan, math.nan, math.nan, math.nan)
    order = np.lexsort((position, identity, video))
    begins = np.ones(count, dtype=bool)
    for key in (video, identity):
        begins[1:] &= key[order][1:] == key[order][:-1]
    begins[1:] = ~begins[1:]
    track = np.cumsum(begins) - 1
    position, box, found = position[order], box[order], found[order]
    found_box, found_class = found_box[order], found_class[order]

    # A step leads from a row to the next one.
    step = (track[1:] == track[:-1]) & (position[1:] == position[:-1] + 1)
    step &= found[1:] & found[:-1]
    changes = found_class[1:] != found_class[:-1]

    places = np.arange(count)
    tracks = int(track[-1]) + 1 if count else 0
    first, last = np.full(tracks, count), np.full(tracks, -1)
    np.minimum.at(first, track[found], places[found])
    np.maximum.at(last, track[found], places[found])
    between = (places >= first[track]) & (places <= last[track])

    size = np.sqrt(np.prod(box[:, 2:] - box[:, :2], axis=1))
    middle = np.flatnonzero(step[1:] & step[:-1] & (size[1:-1] > 0)) + 1
    error = found_box - box
    shake = error[middle - 1] - 2 * error[middle] + error[middle + 1]
    length = np.hypot(shake[:, ::2], shake[:, 1::2]).mean(axis=1)
    return Flicker(
        found=_percent(found),
        class_changes=_percent(changes[step]),
        gaps=_percent(~found[between]),
        jitter=_percent(length / size[middle]),
    )


def _percent(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if len(values) else math.nan
