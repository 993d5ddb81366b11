"""How alike boxes look, for the trackers of the library ``trackers``, which compare places."""

from __future__ import annotations

from typing import Any

import numpy as np
from trackers import BaseIoU, IoU

#: BoT-SORT's share of the old in a track's embedding (alpha in its equation of the moving average).
MOMENTUM = 0.9
#: BoT-SORT's largest cosine distance of one object to itself.
LARGEST_DISTANCE = 0.25


class AppearanceIoU(BaseIoU):
    """IoU of tracks with detections, raised where they look alike; what a tracker takes as ``iou``.

    The library's trackers (2.6) take no embeddings, but they take the similarity of boxes as an
    object, and there BoT-SORT's fusion fits in ("BoT-SORT: Robust Associations Multi-Pedestrian
    Tracking", arXiv 2206.14651, section 3.3, "IoU - Re-ID fusion"): the distance of a track i and a
    detection j is::

        C_ij = min(1 - IoU_ij, d_ij / 2)    where d_ij < LARGEST_DISTANCE and i, j overlap enough
        C_ij = 1 - IoU_ij                   elsewhere

    with d the cosine distance of the track's embedding, a moving average over its detections, to
    the detection's; here as similarity, 1 - C. "Enough" is an IoU of ``least_iou``, by default
    0.1, that at which ByteTrack joins boxes anyway, where the paper asks for 0.5: a track that was
    hidden for some frames is seldom where its motion says. So looks decide between what is near,
    and never join what is not.

    Of detections of low scores, which are blurred or half hidden, only the place counts, as there.
    A track has an embedding once it has a number.

    Args:
        least_iou: see above.
    """

    def __init__(self, least_iou: float = 0.1) -> None:
        self._least_iou = least_iou
        self._plain = IoU()
        self._of_tracks: dict[int, np.ndarray] = {}  # by the tracker's numbers
        self._rows: dict[bytes, int] = {}
        self._clear = np.zeros(0, bool)
        self._embeddings = np.zeros((0, 0))
        self._tracker: Any = None

    def begin(
        self, tracker: Any, boxes: np.ndarray, scores: np.ndarray, embeddings: np.ndarray
    ) -> None:
        """Before the tracker's update with a frame's detections.

        Args:
            tracker: ByteTrack or BoT-SORT: it has ``high_conf_det_threshold``, and ``tracks``, each
                with ``tracker_id`` and ``get_state_bbox()``.
            boxes: (N, 4) x1 y1 x2 y2, as the tracker is given them.
            scores: (N,).
            embeddings: (N, D), each of length 1.
        """
        self._tracker = tracker
        self._clear = scores >= tracker.high_conf_det_threshold
        # The tracker passes on rows of what it was given: they tell which detections they are.
        self._rows = {
            box.tobytes(): row for row, box in enumerate(_exact(boxes)) if self._clear[row]
        }
        self._embeddings = embeddings

    def end(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """After the update: the detections' embeddings become part of their tracks'.

        Args:
            rows: which of the frame's detections.
            numbers: the tracker's number of each, -1 for none.
        """
        for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            if number >= 0 and self._clear[row]:
                new = self._embeddings[row]
                mixed = MOMENTUM * self._of_tracks.get(number, new) + (1 - MOMENTUM) * new
                self._of_tracks[number] = mixed / max(np.linalg.norm(mixed), 1e-12)
        alive = {track.tracker_id for track in self._tracker.tracks}
        self._of_tracks = {n: e for n, e in self._of_tracks.items() if n in alive}

    def _compute(self, boxes_1: np.ndarray, boxes_2: np.ndarray) -> np.ndarray:
        """(N, M) similarities of N tracks, where they are now, to M detections of the frame."""
        overlaps = np.asarray(self._plain.compute(boxes_1, boxes_2), dtype=np.float64)
        places = _exact(np.array([t.get_state_bbox() for t in self._tracker.tracks]))
        tracks = dict(zip(map(np.ndarray.tobytes, places), self._tracker.tracks, strict=True))
        known = [tracks.get(box.tobytes()) for box in _exact(boxes_1)]
        columns = [self._rows.get(box.tobytes()) for box in _exact(boxes_2)]
        if None in columns:
            return overlaps
        looks = np.zeros_like(overlaps)
        for row, track in enumerate(known):
            embedding = None if track is None else self._of_tracks.get(track.tracker_id)
            if embedding is not None:
                distances = 1 - self._embeddings[columns] @ embedding
                near = (distances < LARGEST_DISTANCE) & (overlaps[row] >= self._least_iou)
                looks[row] = np.where(near, 1 - distances / 2, 0.0)
        return np.maximum(overlaps, looks)


def _exact(boxes: np.ndarray) -> np.ndarray:
    """Boxes whose bytes can be compared: of one type, and with one zero."""
    return np.ascontiguousarray(boxes, dtype=np.float64).reshape(-1, 4) + 0.0
