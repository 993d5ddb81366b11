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
* AP is the area under the precision-recall curve with precision made monotonous, at every recall;
  the mean goes over the classes that have an object of that speed.

Equal scores are ranked by image, then in the order given. All work is on sorted arrays: no loop
goes over images, classes or detections, so 17 million detections take about a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clab_d2.evaluation.motion_iou import SPEED_NAMES, motion_speed

IOU_THRESHOLD = 0.5

#: Speed code of objects that never count (crowds).
NEVER = len(SPEED_NAMES)

#: What each AP counts: its name, and the speed codes of the objects in it.
SUBSETS: dict[str, tuple[int, ...]] = {
    "all": (0, 1, 2),
    **{name: (code,) for code, name in enumerate(SPEED_NAMES)},
}

#: Pairs of detection and object whose overlap is computed at a time; bounds the memory.
_PAIRS_AT_A_TIME = 4_000_000


@dataclass(frozen=True)
class Verdicts:
    """What one subset of the objects makes of each detection, in the order of ``Matcher.order``.

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


def segment_positions(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The concatenation of ``arange(start, start + count)`` over all segments."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


class Matcher:
    """Detections beside the objects they may have found; gives the verdicts for each subset.

    Args:
        gt_image: (M,) integers, which image each object is in.
        gt_box: (M, 4) xyxy in pixels.
        gt_class: (M,) integers from 0 to ``num_classes`` - 1.
        gt_motion_iou: (M,) in [0, 1].
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
        for name, classes in (("gt_class", gt_class), ("dt_class", dt_class)):
            if len(classes) and not (classes.min() >= 0 and classes.max() < num_classes):
                raise ValueError(f"{name} holds a class outside 0 to {num_classes - 1}")

        self.num_classes = num_classes
        #: (N,) the detections by class, then by falling score, then by image.
        self.order = np.lexsort((dt_image, -dt_score, dt_class))
        self.score = dt_score[self.order]
        #: (num_classes + 1,) where each class begins in ``order``.
        self.class_start = np.searchsorted(dt_class[self.order], np.arange(num_classes + 1))

        # An image's objects of one class are a group; objects lie group by group from here on.
        num_images = 1 + max(
            int(images.max()) if len(images) else 0 for images in (gt_image, dt_image)
        )
        gt_key = gt_class * num_images + gt_image
        gt_order = np.argsort(gt_key, kind="stable")
        self._speed, self._gt_class = speed[gt_order], gt_class[gt_order]
        group_key, group_start, group_size = np.unique(
            gt_key[gt_order], return_index=True, return_counts=True
        )
        self._group_start, self._group_size = group_start, group_size

        # The rivals: detections in a group that has objects, by group, then by falling score.
        dt_key = (dt_class * num_images + dt_image)[self.order]
        if len(group_key):
            group = np.minimum(np.searchsorted(group_key, dt_key), len(group_key) - 1)
            rival = np.flatnonzero(group_key[group] == dt_key)
        else:
            group = rival = np.zeros(0, dtype=np.int64)
        group = group[rival]
        by_group = np.argsort(group, kind="stable")
        self._rival, self._rival_group = rival[by_group], group[by_group]
        self._measure_overlaps(gt_box[gt_order], dt_box)

    def _measure_overlaps(self, gt_box: np.ndarray, dt_box: np.ndarray) -> None:
        """Fill in each rival's best overlap by speed, and the pairs that may match."""
        sizes = self._group_size[self._rival_group]
        # (R, 4): the best overlap of each rival with the objects of each speed; -1: there are none.
        self._best = np.full((len(self._rival), NEVER + 1), -1.0)
        pair_rival, pair_object, pair_iou = [], [], []
        ends = np.cumsum(sizes)
        first = 0
        while first < len(sizes):
            done = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, done + _PAIRS_AT_A_TIME, side="right"))
            last = max(last, first + 1)
            part = slice(first, last)
            objects = segment_positions(self._group_start[self._rival_group[part]], sizes[part])
            rivals = np.repeat(np.arange(first, last), sizes[part])
            iou = whole_pixel_iou(
                dt_box[self.order[self._rival[rivals]]].astype(np.float64), gt_box[objects]
            )
            starts = ends[part] - sizes[part] - done
            for speed in range(NEVER + 1):
                of_speed = np.where(self._speed[objects] == speed, iou, -1.0)
                self._best[part, speed] = np.maximum.reduceat(of_speed, starts)
            near = np.flatnonzero(iou >= IOU_THRESHOLD)
            pair_rival.append(rivals[near])
            pair_object.append(objects[near])
            pair_iou.append(iou[near])
            first = last

        rival = np.concatenate(pair_rival) if pair_rival else np.zeros(0, dtype=np.int64)
        objects = np.concatenate(pair_object) if pair_object else np.zeros(0, dtype=np.int64)
        iou = np.concatenate(pair_iou) if pair_iou else np.zeros(0)
        # A group's rivals choose one after another, the groups side by side: round 0 holds every
        # group's best-scored rival that overlaps anything, round 1 the second, and so on.
        rivals, rival_row = np.unique(rival, return_inverse=True)
        group = self._rival_group[rivals]
        round_of_rival = np.arange(len(rivals)) - np.searchsorted(group, group)
        turn = round_of_rival[rival_row]
        by_turn = np.argsort(turn, kind="stable")
        self._pair_rival, self._pair_object = rival[by_turn], objects[by_turn]
        self._pair_iou = iou[by_turn]
        num_turns = int(turn.max()) + 1 if len(turn) else 0
        self._turn_start = np.searchsorted(turn[by_turn], np.arange(num_turns + 1))

    def _ignored(self, subset: str) -> np.ndarray:
        """(M,) bool: the objects that do not count in ``subset``."""
        return ~np.isin(self._speed, SUBSETS[subset])

    def positives(self, subset: str) -> np.ndarray:
        """(num_classes,) the number of objects to be found."""
        counted = self._gt_class[~self._ignored(subset)]
        return np.bincount(counted, minlength=self.num_classes)

    def _match(self, ignored: np.ndarray) -> np.ndarray:
        """(R,) the object that each rival takes, or -1."""
        taken = np.zeros(len(self._speed), dtype=bool)
        match = np.full(len(self._rival), -1, dtype=np.int64)
        for start, end in zip(self._turn_start[:-1], self._turn_start[1:], strict=True):
            free = start + np.flatnonzero(~taken[self._pair_object[start:end]])
            rival, objects = self._pair_rival[free], self._pair_object[free]
            # Where two objects overlap a detection equally, one that counts goes first.
            choice = np.lexsort((ignored[objects], -self._pair_iou[free], rival))
            rival, objects = rival[choice], objects[choice]
            is_first = np.ones(len(rival), dtype=bool)
            is_first[1:] = rival[1:] != rival[:-1]
            match[rival[is_first]] = objects[is_first]
            taken[objects[is_first]] = True
        return match

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

        match = self._match(ignored)
        found = match >= 0
        found_counts = found.copy()
        found_counts[found] = ~ignored[match[found]]
        right[self._rival] = found_counts

        counted_best = self._best[:, speeds].max(axis=1)
        ignored_best = self._best[:, others].max(axis=1)
        num_ignored = (
            np.add.reduceat(ignored.astype(np.int64), self._group_start)
            if len(self._group_start)
            else np.zeros(0)
        )
        ignored_share = (num_ignored / self._group_size)[self._rival_group]
        weight = np.where(ignored_share > 0, ignored_share, 1.0)
        weight[counted_best > ignored_best] = 1.0
        weight[(ignored_best > counted_best) | found] = 0.0
        wrong[self._rival] = weight
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

    Arguments and errors are those of :class:`Matcher`.

    Returns:
        For "all", "fast", "medium" and "slow", (num_classes,) float64; NaN for a class without
        such objects. Their means are :func:`mean_over_classes`.
    """
    matcher = Matcher(
        gt_image, gt_box, gt_class, gt_motion_iou,
        dt_image, dt_box, dt_class, dt_score,
        num_classes, gt_never=gt_never,
    )  # fmt: skip
    return {subset: matcher.average_precision(subset) for subset in SUBSETS}


def _integers(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.int64).reshape(-1)


def _check_lengths(kind: str, **arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{kind} arrays differ in length: {lengths}")
