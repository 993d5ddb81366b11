"""Seq-NMS: high-scored detections of an object lift its weak ones in other frames."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable

from clab_d2.errors import ConfigError
from clab_d2.postprocessing.base import (
    POSTPROCESSING_REGISTRY,
    PostProcessing,
    Rescored,
    VideoDetections,
    checked_iou,
)
from clab_d2.postprocessing.links import Neighbours, SortedDetections

RESCORINGS = {"average": np.mean, "max": np.max}


@POSTPROCESSING_REGISTRY.register(name="seq_nms")
class SeqNMS(PostProcessing):
    """:func:`seq_nms` with the numbers of ``TEST.POSTPROCESS``."""

    @configurable
    def __init__(
        self, link_iou: float = 0.5, suppress_iou: float = 0.3, rescoring: str = "average"
    ) -> None:
        """See :func:`seq_nms`.

        Raises:
            ConfigError: a threshold is not from 0 to 1, or the rescoring is unknown.
        """
        self.link_iou = checked_iou("LINK_IOU", link_iou)
        self.suppress_iou = checked_iou("SUPPRESS_IOU", suppress_iou)
        if rescoring not in RESCORINGS:
            raise ConfigError(
                f"TEST.POSTPROCESS.RESCORING is {rescoring!r}; choose one of "
                f"{', '.join(map(repr, RESCORINGS))}"
            )
        self.rescoring = rescoring

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        keys = cfg.TEST.POSTPROCESS
        return {
            "link_iou": keys.LINK_IOU,
            "suppress_iou": keys.SUPPRESS_IOU,
            "rescoring": keys.RESCORING,
        }

    def __call__(self, detections: VideoDetections) -> Rescored:
        return seq_nms(detections, self.link_iou, self.suppress_iou, self.rescoring)


def seq_nms(
    detections: VideoDetections,
    link_iou: float = 0.5,
    suppress_iou: float = 0.3,
    rescoring: str = "average",
) -> Rescored:
    """Seq-NMS (Han et al., arXiv:1602.08465, section 3), for each class on its own.

    Over and over, until no detection is left: of all sequences of detections in consecutive frames
    in which each overlaps the next by more than ``link_iou``, take the one with the largest sum of
    scores; give its members the mean (or maximum) of their scores; in its frames drop what
    overlaps its member by more than ``suppress_iou``.

    Of equal sums the sequence is taken whose last detection is in the earliest frame (in one frame,
    the first as given), and so on from its end to its beginning.

    A sequence taken changes only sums of sequences that went through what is gone. So sums are kept
    over the rounds and only those behind a gap are computed again, while a heap holds them by size.
    N detections with P overlapping pairs take memory for N + P numbers. A round takes time for its
    sequence and for what lies behind it with smaller sums, so that in practice the whole takes
    about as long as reading the detections (docs/evaluation.md has a measurement).

    Args:
        detections: of one video. The paper takes those before non-maximum suppression; a detector's
            final ones serve as well.
        link_iou: see above; the paper's is 0.5.
        suppress_iou: see above; the paper's is 0.3.
        rescoring: "average" or "max".

    Returns:
        The members of all sequences, with their new scores.
    """
    rescore = RESCORINGS[rescoring]
    ordered = SortedDetections(detections)
    count = len(ordered.order)
    links, rivals = ordered.links(link_iou), ordered.rivals(suppress_iou)
    best_sums = _best_sums(ordered, links.first, links.second)
    before = Neighbours(links.second, links.first, count)
    after = Neighbours(links.first, links.second, count)
    beside = Neighbours(
        np.concatenate([rivals.first, rivals.second]),
        np.concatenate([rivals.second, rivals.first]),
        count,
    )
    # What has neither neighbours nor rivals is a sequence of its own and changes nothing.
    concerned = np.zeros(count, dtype=bool)
    for rows in (links.first, links.second, rivals.first, rivals.second):
        concerned[rows] = True

    score: list[float] = ordered.score.tolist()
    # The largest sum of a sequence that ends with each detection, of what is left.
    best: list[float] = best_sums.tolist()
    left = [True] * count
    kept = ~concerned
    new_score = ordered.score.copy()
    heap = [(-best[row], row) for row in np.flatnonzero(concerned).tolist()]
    heapq.heapify(heap)
    while heap:
        negative_sum, row = heapq.heappop(heap)
        if not left[row]:
            continue
        if -negative_sum != best[row]:  # it has become less since
            heapq.heappush(heap, (-best[row], row))
            continue
        sequence = [row]
        while linked := [other for other in before[row] if left[other]]:
            row = max(linked, key=best.__getitem__)
            sequence.append(row)
        kept[sequence] = True
        new_score[sequence] = rescore(ordered.score[sequence])
        gone = [*sequence, *(other for row in sequence for other in beside[row] if left[other])]
        for row in gone:
            left[row] = False
        _sum_again(gone, score, best, left, before, after)

    rows = ordered.order[kept]
    by_row = np.argsort(rows)
    return Rescored(rows[by_row], new_score[kept][by_row])


def _best_sums(ordered: SortedDetections, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) the largest sum of a sequence that ends with each detection, frame after frame."""
    best = ordered.score.copy()
    by_frame = np.lexsort((second, ordered.frame[second]))
    first, second = first[by_frame], second[by_frame]
    frame = ordered.frame[second]
    cuts = [0, *(np.flatnonzero(np.diff(frame)) + 1).tolist(), len(frame)]
    for begin, end in itertools.pairwise(cuts if len(frame) else []):
        target = second[begin:end]
        changes = np.flatnonzero(np.diff(target, prepend=-1))
        best[target[changes]] += np.maximum.reduceat(best[first[begin:end]], changes)
    return best


def _sum_again(
    gone: list[int],
    score: list[float],
    best: list[float],
    left: list[bool],
    before: Neighbours,
    after: Neighbours,
) -> None:
    """Correct ``best`` behind what is gone, in place; what comes later has the larger number."""
    waiting = sorted({behind for row in gone for behind in after[row] if left[behind]})
    known = set(waiting)
    while waiting:
        row = heapq.heappop(waiting)
        known.remove(row)
        total = score[row] + max((best[o] for o in before[row] if left[o]), default=0.0)
        if total != best[row]:
            best[row] = total
            for behind in after[row]:
                if left[behind] and behind not in known:
                    heapq.heappush(waiting, behind)
                    known.add(behind)
