"""Which detections of a video overlap, within a frame and from one frame to the next.

Detections are sorted by class, then by frame. So a frame's detections of a class lie together, and
right behind them those of the next frame that has any. Overlaps are computed for all frames side
by side, a bounded number of pairs at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clab_d2.evaluation.boxes import paired_iou
from clab_d2.postprocessing.base import VideoDetections

#: Pairs whose overlap is computed at a time; bounds the memory.
_PAIRS_AT_A_TIME = 250_000


@dataclass(frozen=True)
class Pairs:
    """Pairs of detections that overlap enough, by ``first``, then by ``second``.

    Attributes:
        first, second: (P,) positions in the sorted order.
        iou: (P,) their overlap.
    """

    first: np.ndarray
    second: np.ndarray
    iou: np.ndarray


class SortedDetections:
    """A video's detections by class, then by frame, then as given.

    Attributes:
        order: (N,) the row of each in what was given. All other numbers are positions in it.
        frame, score: (N,).
        box: (N, 4) xyxy.
    """

    def __init__(self, detections: VideoDetections) -> None:
        self.order = np.lexsort((detections.frame, detections.class_index))
        self.frame = detections.frame[self.order]
        self.score = detections.score[self.order]
        self.box = detections.box[self.order]
        class_index = detections.class_index[self.order]
        count = len(self.order)
        begins = np.ones(count, dtype=bool)
        begins[1:] = (np.diff(class_index) != 0) | (np.diff(self.frame) != 0)
        start = np.flatnonzero(begins)
        end = np.append(start[1:], count)
        group = np.cumsum(begins) - 1
        self._own_end = end[group] if count else start
        # Groups lie by class and frame: the next frame's is the next one, if there is any.
        follows = np.zeros(len(start), dtype=bool)
        follows[:-1] = (class_index[start[1:]] == class_index[start[:-1]]) & (
            self.frame[start[1:]] == self.frame[start[:-1]] + 1
        )
        next_size = np.where(follows, np.append(end[1:] - start[1:], 0), 0)
        self._next_size = next_size[group] if count else start

    def links(self, above: float) -> Pairs:
        """Detections of a class in neighbouring frames whose IoU is above a threshold."""
        return self._overlapping(self._own_end, self._next_size, above)

    def rivals(self, above: float) -> Pairs:
        """Detections of a class in one frame whose IoU is above a threshold, each pair once."""
        start = np.arange(len(self.order)) + 1
        return self._overlapping(start, self._own_end - start, above)

    def _overlapping(self, start: np.ndarray, size: np.ndarray, above: float) -> Pairs:
        """Compare each detection with the ``size`` ones from ``start`` on."""
        ends = np.cumsum(size)
        pieces = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
        begin = 0
        while begin < len(size):
            done = int(ends[begin - 1]) if begin else 0
            end = int(np.searchsorted(ends, done + _PAIRS_AT_A_TIME, side="right"))
            end = max(end, begin + 1)
            first = np.repeat(np.arange(begin, end), size[begin:end])
            within = np.arange(len(first)) - np.repeat(
                ends[begin:end] - size[begin:end] - done, size[begin:end]
            )
            second = start[first] + within
            iou = paired_iou(self.box[first], self.box[second])
            near = iou > above
            pieces.append((first[near], second[near], iou[near]))
            begin = end
        return Pairs(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


class Neighbours:
    """For each of N nodes its neighbours, rising, as plain lists for a loop over single nodes."""

    def __init__(self, node: np.ndarray, neighbour: np.ndarray, count: int) -> None:
        order = np.lexsort((neighbour, node))
        self._neighbour: list[int] = neighbour[order].tolist()
        self._start: list[int] = np.searchsorted(node[order], np.arange(count + 1)).tolist()

    def __getitem__(self, node: int) -> list[int]:
        return self._neighbour[self._start[node] : self._start[node + 1]]
