"""HOTA, MOTA and IDF1 of tracked detections, computed by TrackEval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from clab_d2.errors import DataError
from clab_d2.evaluation.boxes import paired_iou, xywh_to_xyxy
from clab_d2.evaluation.detections import Detections
from clab_d2.evaluation.flicker import annotated_positions
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.optional import import_optional

#: What is told of each class, and how it is called in TrackEval's results.
_FIELDS = {"HOTA": "HOTA", "DetA": "DetA", "AssA": "AssA", "MOTA": "MOTA", "IDF1": "IDF1"}

#: A track's box that fits an object that does not count by this or more counts neither way.
_IGNORED_IOU = 0.5


@dataclass(frozen=True)
class _Boxes:
    """Boxes of one class in one video, by the position of their frame.

    Attributes:
        position: (N,) of each one's frame, rising.
        identity: (N,) object or track.
        box: (N, 4) xyxy.
        counts: (N,) bool.
    """

    position: np.ndarray
    identity: np.ndarray
    box: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(
        cls, position: np.ndarray, identity: np.ndarray, box: np.ndarray, counts: np.ndarray
    ) -> _Boxes:
        order = np.argsort(position, kind="stable")
        return cls(position[order], identity[order], xywh_to_xyxy(box[order]), counts[order])


def measure_tracks(truth: GroundTruth, detections: Detections, source: str) -> dict[str, float]:
    """Compare the tracks of detections with those of the truth.

    Each class is measured on its own over all videos (TrackEval's ``combine_sequences``), with its
    tracks there alone; the figures are the means over the classes that have objects in tracks. Only
    detections with a track count, in annotated frames. Crowds and objects without identity are to
    be found by nobody: in their frames, tracks and objects are matched for the largest sum of IoU
    first, and what then takes one of them by an IoU of 0.5 or more is left out, as the MOTChallenge
    does with its distractors.

    Args:
        truth: what there is to be found.
        detections: in the annotated frames.
        source: of the detections, for messages.

    Returns:
        HOTA, DetA and AssA (means over IoU thresholds from 0.05 to 0.95), MOTA and IDF1 (at 0.5),
        in percent, NaN where there is no object in a track, and the number of identity switches,
        ``IDSW``.

    Raises:
        ConfigError: TrackEval is not installed.
        DataError: no detection has a track, or a track has two boxes of a class in one frame.
    """
    trackeval = import_optional("trackeval", "track", "tools/evaluate.py --tracks")
    tracked = np.flatnonzero(detections.track_id >= 0)
    if len(tracked) == 0:
        raise DataError(
            f"{source}: no detection has a track_id; write the tracks of tools/demo.py --track, or "
            "leave out --tracks"
        )
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = [
            trackeval.metrics.HOTA(),
            trackeval.metrics.CLEAR({"PRINT_CONFIG": False}),
            trackeval.metrics.Identity({"PRINT_CONFIG": False}),
        ]
    by_class: list[dict[str, float]] = []
    counted = ~truth.crowd & (truth.identity >= 0)
    for class_index in np.unique(truth.class_index[counted]).tolist():
        sequences = list(_sequences(truth, detections, tracked, class_index, source))
        figures: dict[str, Any] = {}
        for metric in metrics:
            results = {str(i): metric.eval_sequence(data) for i, data in enumerate(sequences)}
            figures |= metric.combine_sequences(results)
        by_class.append({name: 100 * float(np.mean(figures[key])) for name, key in _FIELDS.items()})
        by_class[-1]["IDSW"] = float(figures["IDSW"])
    names = [*_FIELDS, "IDSW"]
    if not by_class:
        return dict.fromkeys(names, float("nan"))
    means = {name: float(np.mean([each[name] for each in by_class])) for name in _FIELDS}
    return {**means, "IDSW": sum(each["IDSW"] for each in by_class)}


def _sequences(
    truth: GroundTruth,
    detections: Detections,
    tracked: np.ndarray,
    class_index: int,
    source: str,
) -> Iterator[dict[str, Any]]:
    """TrackEval's data of each video that has objects or tracks of a class."""
    position = annotated_positions(truth)
    objects = np.flatnonzero(truth.class_index == class_index)
    rows = tracked[detections.class_index[tracked] == class_index]
    video_of_object = truth.video_of_image[truth.image[objects]]
    video_of_row = truth.video_of_image[detections.image[rows]]
    for video in np.union1d(video_of_object, video_of_row).tolist():
        mine, theirs = objects[video_of_object == video], rows[video_of_row == video]
        counts = ~truth.crowd[mine] & (truth.identity[mine] >= 0)
        gt = _Boxes.of(position[truth.image[mine]], truth.identity[mine], truth.box[mine], counts)
        found = _Boxes.of(
            position[detections.image[theirs]],
            detections.track_id[theirs],
            detections.box[theirs],
            np.ones(len(theirs), dtype=bool),
        )
        for what, where, boxes in (("object", truth.source, gt), ("track", source, found)):
            _check_once(boxes, what, where, truth, video)
        yield _sequence(gt, found, int(position[truth.video_of_image == video].max()) + 1)


def _check_once(boxes: _Boxes, what: str, source: str, truth: GroundTruth, video: int) -> None:
    keys = np.stack([boxes.position, boxes.identity], axis=1)[boxes.counts]
    unique, times = np.unique(keys, axis=0, return_counts=True)
    if (times > 1).any():
        number = int(unique[times > 1][0, 1])
        raise DataError(
            f"{source}: {what} {number} of {truth.video_names[video]} has two boxes in one frame; "
            "give each its own number"
        )


def _sequence(gt: _Boxes, found: _Boxes, num_frames: int) -> dict[str, Any]:
    """One video of a class, as TrackEval's metrics take it."""
    gt_ids, track_ids, similarities = [], [], []
    ends = np.arange(num_frames + 1)
    gt_start, found_start = (np.searchsorted(boxes.position, ends) for boxes in (gt, found))
    for frame in range(num_frames):
        mine = np.arange(gt_start[frame], gt_start[frame + 1])
        theirs = np.arange(found_start[frame], found_start[frame + 1])
        iou = _all_ious(gt.box[mine], found.box[theirs])
        counts = gt.counts[mine]
        if not counts.all():
            scores = np.where(iou >= _IGNORED_IOU, iou, 0)
            rows, columns = linear_sum_assignment(scores, maximize=True)
            ignored = (scores[rows, columns] > 0) & ~counts[rows]
            left = np.setdiff1d(np.arange(len(theirs)), columns[ignored])
            mine, theirs, iou = mine[counts], theirs[left], iou[counts][:, left]
        gt_ids.append(mine)
        track_ids.append(theirs)
        similarities.append(iou)
    data: dict[str, Any] = {"num_timesteps": num_frames, "similarity_scores": similarities}
    for prefix, boxes, by_frame in (("gt", gt, gt_ids), ("tracker", found, track_ids)):
        # Only those that are left, from 0 without gaps.
        rows = np.concatenate(by_frame) if by_frame else np.zeros(0, int)
        known, number = np.unique(boxes.identity[rows], return_inverse=True)
        cuts = np.cumsum([len(each) for each in by_frame])[:-1]
        data[f"{prefix}_ids"] = np.split(number.reshape(-1), cuts)
        data[f"num_{prefix}_ids"] = len(known)
        data[f"num_{prefix}_dets"] = len(rows)
    return data


def _all_ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) IoU of all pairs of (A, 4) and (B, 4) boxes xyxy."""
    iou = paired_iou(np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1)))
    return iou.reshape(len(a), len(b))
