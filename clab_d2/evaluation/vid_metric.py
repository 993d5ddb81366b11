"""The ImageNet VID metric: AP50 over all, slow, medium and fast objects, from flat arrays.

The rules are those of the ILSVRC VID development kit as extended to motion speed by FGFA (Zhu et
al., ICCV 2017), found to hold to the last digit on data computed with them:

* Boxes count as whole pixels: a box from x1 to x2 is x2 - x1 + 1 wide, also where they overlap.
* In each frame and class, detections are taken by falling score; each takes the free object it
  overlaps most, if by an IoU of at least 0.5. (The kit's lower threshold for small objects in
  still images does not apply to VID.)
* For one speed, objects of the other speeds are ignored: a detection that takes one counts neither
  as right nor as wrong. One that takes nothing is ignored if, of the objects of its class in its
  frame, an ignored one overlaps it most; wrong if a counted one does; and where they draw (both
  overlap it by 0), it is wrong with the ignored objects' share among those as its weight.
* A detection in a frame without any object of its class is wrong; for one speed, it is with the
  weight of that speed's share among all objects, so that the sum over speeds is right.
* An object of unknown speed counts over all, and is ignored for each speed.
* AP is the area under the precision-recall curve with precision made monotonous, at every recall;
  the mean goes over the classes that have an object of that speed.

Equal scores are ranked by image, then in the order given. Matching is
that of :mod:`clab_d2.evaluation.matching`, vectorised for tens of millions of detections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clab_d2.evaluation.matching import find_candidates, lay_out, match_greedily
from clab_d2.evaluation.motion_iou import SPEED_NAMES, UNKNOWN, motion_speed

IOU_THRESHOLD = 0.5

#: Speed code of objects that never count (crowds).
NEVER = UNKNOWN + 1

#: What each AP counts: its name, and the speed codes of the objects in it.
SUBSETS: dict[str, tuple[int, ...]] = {
    "all": (*range(len(SPEED_NAMES)), UNKNOWN),
    **{name: (code,) for code, name in enumerate(SPEED_NAMES)},
}


@dataclass(frozen=True)
class Verdicts:
    """What one subset makes of each detection, in the order of ``VIDPrecision.order``.

    Attributes:
        right: (N,) bool, the detection found an object that counts.
        wrong: (N,) float64, how much it counts as a false alarm, 0 to 1.
    """

    right: np.ndarray
    wrong: np.ndarray


@dataclass(frozen=True)
class Curve:
    """A precision-recall curve: one point for each right detection, by falling score.

    Attributes:
        recall, precision: (K,) float64. Precision is as measured, not made monotonous.
        score: (K,) the score at which that point is reached.
        positives: how many objects there were to be found.
    """

    recall: np.ndarray
    precision: np.ndarray
    score: np.ndarray
    positives: int


def whole_pixel_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of each of (N, 4) boxes xyxy with the one in the same row, boxes as whole pixels."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + 1
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + 1
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area_a = (a[:, 2] - a[:, 0] + 1) * (a[:, 3] - a[:, 1] + 1)
    area_b = (b[:, 2] - b[:, 0] + 1) * (b[:, 3] - b[:, 1] + 1)
    return intersection / (area_a + area_b - intersection)


class VIDPrecision:
    """What detections found, by subset of the objects: verdicts, curves and AP of each class.

    Args:
        gt_image: (M,) integers, which image each object is in.
        gt_box: (M, 4) xyxy in pixels.
        gt_class: (M,) integers from 0 to ``num_classes`` - 1.
        gt_motion_iou: (M,) in [0, 1]; NaN where it is unknown.
        dt_image, dt_box, dt_class: the same for N detections.
        dt_score: (N,).
        num_classes: how many classes there are.
        gt_never: (M,) bool: objects that are ignored in every subset (crowds); none by default.

    Raises:
        ValueError: arrays that belong together differ in length, or a class is out of range.
    """

    def __init__(
        self,
        gt_image: np.ndarray,
        gt_box: np.ndarray,
        gt_class: np.ndarray,
        gt_motion_iou: np.ndarray,
        dt_image: np.ndarray,
        dt_box: np.ndarray,
        dt_class: np.ndarray,
        dt_score: np.ndarray,
        num_classes: int,
        *,
        gt_never: np.ndarray | None = None,
    ) -> None:
        gt_image, gt_class = _integers(gt_image), _integers(gt_class)
        dt_image, dt_class = _integers(dt_image), _integers(dt_class)
        dt_score = np.asarray(dt_score)
        gt_box = np.asarray(gt_box, dtype=np.float64).reshape(-1, 4)
        dt_box = np.asarray(dt_box).reshape(-1, 4)
        speed = motion_speed(gt_motion_iou)
        if gt_never is not None:
            speed = np.where(np.asarray(gt_never, dtype=bool), np.int8(NEVER), speed)
        _check_lengths("gt", gt_image=gt_image, gt_box=gt_box, gt_class=gt_class, speed=speed)
        _check_lengths("dt", dt_image=dt_image, dt_box=dt_box, dt_class=dt_class, score=dt_score)
        self.num_classes = num_classes
        self._layout = lay_out(gt_image, gt_class, dt_image, dt_class, dt_score, num_classes)
        #: (N,) the detections by class, then by falling score, then by image.
        self.order = self._layout.order
        #: (num_classes + 1,) where each class begins in ``order``.
        self.class_start = self._layout.class_start
        self.score = dt_score[self.order]
        gt_order = self._layout.gt_order
        self._speed, self._gt_class = speed[gt_order], gt_class[gt_order]
        # (R, 4): the best overlap of each rival with the objects of each speed; -1: there are none.
        self._best = np.full((len(self._layout.rival), NEVER + 1), -1.0)
        self._candidates = find_candidates(
            self._layout,
            gt_box[gt_order],
            dt_box,
            lambda boxes, objects, _: whole_pixel_iou(boxes, objects),
            IOU_THRESHOLD,
            visit=self._note_best,
        )

    def _note_best(
        self, rivals: slice, objects: np.ndarray, iou: np.ndarray, starts: np.ndarray
    ) -> None:
        for speed in range(NEVER + 1):
            of_speed = np.where(self._speed[objects] == speed, iou, -1.0)
            self._best[rivals, speed] = np.maximum.reduceat(of_speed, starts)

    def _ignored(self, subset: str) -> np.ndarray:
        """(M,) bool: the objects that do not count in ``subset``."""
        return ~np.isin(self._speed, SUBSETS[subset])

    def positives(self, subset: str) -> np.ndarray:
        """(num_classes,) the number of objects to be found."""
        counted = self._gt_class[~self._ignored(subset)]
        return np.bincount(counted, minlength=self.num_classes)

    def verdicts(self, subset: str) -> Verdicts:
        """Judge every detection.

        Args:
            subset: a key of :data:`SUBSETS`.
        """
        ignored = self._ignored(subset)
        speeds = list(SUBSETS[subset])
        others = [speed for speed in range(NEVER + 1) if speed not in speeds]

        # Detections in frames without their class: this subset's share of the false alarms. Where
        # the subset holds nothing at all, there is no AP that the weight could matter to.
        countable = int((self._speed != NEVER).sum())
        share = float((~ignored).sum()) / countable if countable else 0.0
        right = np.zeros(len(self.order), dtype=bool)
        wrong = np.full(len(self.order), share if share > 0 else 1.0)

        rival, group = self._layout.rival, self._layout.rival_group
        match = match_greedily(self._candidates, len(rival), ignored)
        found = match >= 0
        right[rival[found]] = ~ignored[match[found]]

        counted_best = self._best[:, speeds].max(axis=1)
        ignored_best = self._best[:, others].max(axis=1)
        in_group = np.repeat(np.arange(len(self._layout.group_size)), self._layout.group_size)
        num_ignored = np.bincount(in_group, weights=ignored)
        ignored_share = (num_ignored / self._layout.group_size)[group]
        weight = np.where(ignored_share > 0, ignored_share, 1.0)
        weight[counted_best > ignored_best] = 1.0
        weight[(ignored_best > counted_best) | found] = 0.0
        wrong[rival] = weight
        return Verdicts(right, wrong)

    def curves(self, subset: str) -> Iterator[Curve | None]:
        """The precision-recall curve of each class; None where there is no object to be found."""
        verdicts = self.verdicts(subset)
        for index, positives in enumerate(self.positives(subset)):
            part = slice(self.class_start[index], self.class_start[index + 1])
            yield (
                precision_recall(
                    verdicts.right[part], verdicts.wrong[part], self.score[part], int(positives)
                )
                if positives
                else None
            )

    def average_precision(self, subset: str) -> np.ndarray:
        """(num_classes,) AP of each class, from 0 to 1; NaN where there is nothing to be found."""
        return np.array(
            [np.nan if c is None else area_under(c) for c in self.curves(subset)], dtype=np.float64
        )


def precision_recall(
    right: np.ndarray, wrong: np.ndarray, score: np.ndarray, positives: int
) -> Curve:
    """The curve of detections sorted by falling score (see :class:`Verdicts`)."""
    hits = np.flatnonzero(right)
    num_right = np.arange(1, len(hits) + 1)
    num_wrong = np.cumsum(wrong)[hits]
    return Curve(num_right / positives, num_right / (num_right + num_wrong), score[hits], positives)


def area_under(curve: Curve) -> float:
    """Average precision: each step in recall times the best precision at or beyond it."""
    best_beyond = np.maximum.accumulate(curve.precision[::-1])[::-1]
    return float(best_beyond.sum() / curve.positives)


def mean_over_classes(ap: np.ndarray) -> float:
    """Mean over the classes that have an AP; NaN if none has."""
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else float("nan")


def vid_average_precision(
    gt_image: np.ndarray,
    gt_box: np.ndarray,
    gt_class: np.ndarray,
    gt_motion_iou: np.ndarray,
    dt_image: np.ndarray,
    dt_box: np.ndarray,
    dt_class: np.ndarray,
    dt_score: np.ndarray,
    num_classes: int,
    *,
    gt_never: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """AP50 of each class over all, slow, medium and fast objects, from 0 to 1.

    Arguments and errors are those of :class:`VIDPrecision`.

    Returns:
        For "all", "fast", "medium" and "slow", (num_classes,) float64; NaN for a class without
        such objects. Their means are :func:`mean_over_classes`.
    """
    precision = VIDPrecision(
        gt_image, gt_box, gt_class, gt_motion_iou,
        dt_image, dt_box, dt_class, dt_score,
        num_classes, gt_never=gt_never,
    )  # fmt: skip
    return {subset: precision.average_precision(subset) for subset in SUBSETS}


def _integers(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.int64).reshape(-1)


def _check_lengths(kind: str, **arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{kind} arrays differ in length: {lengths}")
