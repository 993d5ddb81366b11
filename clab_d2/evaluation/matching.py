"""Which detection finds which object: what the VID and the COCO metric have in common.

Both go frame by frame and class by class, let the detections choose an object by falling score,
and then rank the detections of a class over all frames. Here that is done on sorted flat arrays,
all frames side by side: no loop goes over images, classes or detections.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Pairs of detection and object whose overlap is computed at a time; bounds the memory.
_PAIRS_AT_A_TIME = 4_000_000

#: Takes (P, 4) boxes of detections and of objects and the objects' rows; gives (P,) overlaps.
Overlap = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _segment_positions(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The concatenation of ``arange(start, start + count)`` over all segments."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


@dataclass(frozen=True)
class Layout:
    """Detections and objects sorted for matching.

    A group is the objects of one class in one image. The rivals are the detections of a class and
    image that has a group; all others cannot find anything.

    Attributes:
        order: (N,) the detections by class, then by falling score, then by image, then as given.
            All other detection numbers here are positions in this order.
        class_start: (num_classes + 1,) where each class begins in ``order``.
        gt_order: (M,) the objects group by group. All other object numbers are positions in it.
        group_start, group_size: (G,) each group's objects.
        rival: (R,) detections, group by group, each by falling score.
        rival_group: (R,) their group.
    """

    order: np.ndarray
    class_start: np.ndarray
    gt_order: np.ndarray
    group_start: np.ndarray
    group_size: np.ndarray
    rival: np.ndarray
    rival_group: np.ndarray


def lay_out(
    gt_image: np.ndarray,
    gt_class: np.ndarray,
    dt_image: np.ndarray,
    dt_class: np.ndarray,
    dt_score: np.ndarray,
    num_classes: int,
) -> Layout:
    """Sort M objects and N detections, given as 1-D arrays; images and classes are integers >= 0.

    Raises:
        ValueError: a class is not below ``num_classes``.
    """
    for name, classes in (("gt_class", gt_class), ("dt_class", dt_class)):
        if len(classes) and not (classes.min() >= 0 and classes.max() < num_classes):
            raise ValueError(f"{name} holds a class outside 0 to {num_classes - 1}")
    order = np.lexsort((dt_image, -dt_score, dt_class))
    class_start = np.searchsorted(dt_class[order], np.arange(num_classes + 1))

    num_images = 1 + max(int(images.max(initial=0)) for images in (gt_image, dt_image))
    gt_key = gt_class.astype(np.int64) * num_images + gt_image
    gt_order = np.argsort(gt_key, kind="stable")
    group_key, group_start, group_size = np.unique(
        gt_key[gt_order], return_index=True, return_counts=True
    )
    if len(group_key):
        dt_key = dt_class[order].astype(np.int64) * num_images + dt_image[order]
        group = np.minimum(np.searchsorted(group_key, dt_key), len(group_key) - 1)
        rival = np.flatnonzero(group_key[group] == dt_key)
    else:
        group = rival = np.zeros(0, dtype=np.int64)
    group = group[rival]
    by_group = np.argsort(group, kind="stable")
    return Layout(
        order, class_start, gt_order, group_start, group_size, rival[by_group], group[by_group]
    )


@dataclass(frozen=True)
class Candidates:
    """Pairs of a rival and an object that overlap enough to match.

    A group's rivals choose one after another, the groups side by side: turn 0 holds the
    best-scored rival of every group that overlaps anything, turn 1 the second, and so on. Within a
    turn, pairs lie rival by rival, by falling overlap.

    Attributes:
        rival, object, iou: (P,) each pair.
        turn_start: (T + 1,) where each turn begins.
    """

    rival: np.ndarray
    object: np.ndarray
    iou: np.ndarray
    turn_start: np.ndarray


def find_candidates(
    layout: Layout,
    gt_box: np.ndarray,
    dt_box: np.ndarray,
    overlap: Overlap,
    threshold: float,
    *,
    last_of_equals: bool = False,
    visit: Callable[[slice, np.ndarray, np.ndarray, np.ndarray], None] | None = None,
) -> Candidates:
    """Compute the overlaps of all rivals with the objects of their group, piece by piece.

    Args:
        layout: of the objects and detections.
        gt_box: (M, 4) in the order of ``layout.gt_order``.
        dt_box: (N, 4) in the order given to :func:`lay_out` (not copied as a whole).
        overlap: computes the overlaps.
        threshold: the least overlap of a candidate.
        last_of_equals: of objects that a rival overlaps equally, put the last first.
        visit: called for each piece with the slice of rivals in it, the object and the overlap of
            every pair, and where each rival's pairs begin.
    """
    sizes = layout.group_size[layout.rival_group]
    ends = np.cumsum(sizes)
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [
        (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    ]
    first = 0
    while first < len(sizes):
        done = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, done + _PAIRS_AT_A_TIME, side="right"))
        last = max(last, first + 1)
        part = slice(first, last)
        objects = _segment_positions(layout.group_start[layout.rival_group[part]], sizes[part])
        rivals = np.repeat(np.arange(first, last), sizes[part])
        boxes = dt_box[layout.order[layout.rival[part]]].astype(np.float64)
        iou = overlap(boxes[rivals - first], gt_box[objects], objects)
        if visit is not None:
            visit(part, objects, iou, ends[part] - sizes[part] - done)
        near = np.flatnonzero(iou >= threshold)
        pieces.append((rivals[near], objects[near], iou[near]))
        first = last

    rival, objects, iou = (np.concatenate(column) for column in zip(*pieces, strict=True))
    rivals, row = np.unique(rival, return_inverse=True)
    group = layout.rival_group[rivals]
    turn = (np.arange(len(rivals)) - np.searchsorted(group, group))[row]
    by_turn = np.lexsort((-objects if last_of_equals else objects, -iou, rival, turn))
    num_turns = int(turn.max(initial=-1)) + 1
    turn_start = np.searchsorted(turn[by_turn], np.arange(num_turns + 1))
    return Candidates(rival[by_turn], objects[by_turn], iou[by_turn], turn_start)


def match_greedily(
    candidates: Candidates,
    num_rivals: int,
    ignored: np.ndarray,
    *,
    threshold: float = 0.0,
    counted_first: bool = False,
    shared: np.ndarray | None = None,
) -> np.ndarray:
    """Let each rival, in its turn, take the free object that it overlaps most.

    Args:
        candidates: the pairs that may match.
        num_rivals: R.
        ignored: (M,) bool, objects that do not count.
        threshold: the least overlap, where it is above that of the candidates.
        counted_first: take an object that counts even if an ignored one overlaps more; else it
            has the advantage at equal overlap only.
        shared: (M,) bool, objects that any number of rivals may take.

    Returns:
        (R,) the object that each rival takes, or -1.
    """
    taken = np.zeros(len(ignored), dtype=bool)
    match = np.full(num_rivals, -1, dtype=np.int64)
    starts = candidates.turn_start.tolist()
    for start, end in itertools.pairwise(starts):
        free = ~taken[candidates.object[start:end]]
        if threshold > 0:
            free &= candidates.iou[start:end] >= threshold
        pairs = start + np.flatnonzero(free)
        if len(pairs) == 0:
            continue
        rival, objects = candidates.rival[pairs], candidates.object[pairs]
        begins = np.flatnonzero(np.diff(rival, prepend=-1))
        # A rival's pairs lie by falling overlap: it takes the first of those least penalised.
        penalty = ignored[objects].astype(np.int64)
        if not counted_first:
            iou = candidates.iou[pairs]
            best = np.repeat(iou[begins], np.diff(begins, append=len(pairs)))
            penalty[iou < best] = 2
        place = np.minimum.reduceat(penalty * len(pairs) + np.arange(len(pairs)), begins)
        place %= len(pairs)
        match[rival[place]] = objects[place]
        gone = objects[place]
        taken[gone if shared is None else gone[~shared[gone]]] = True
    return match
