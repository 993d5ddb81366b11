"""Scores smoothed over time: a detection counts for what it is in the frames around, too."""

from __future__ import annotations

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
from clab_d2.postprocessing.links import SortedDetections


@POSTPROCESSING_REGISTRY.register(name="smooth_scores")
class SmoothScores(PostProcessing):
    """:func:`smooth_scores` with the numbers of ``TEST.POSTPROCESS``."""

    @configurable
    def __init__(self, link_iou: float = 0.5, window: int = 5) -> None:
        """See :func:`smooth_scores`.

        Raises:
            ConfigError: the threshold is not from 0 to 1, or the window not odd.
        """
        self.link_iou = checked_iou("LINK_IOU", link_iou)
        if window < 1 or window % 2 == 0:
            raise ConfigError(
                f"TEST.POSTPROCESS.WINDOW is {window}; it must be an odd number of frames, as many "
                "before as after"
            )
        self.window = window

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "link_iou": cfg.TEST.POSTPROCESS.LINK_IOU,
            "window": cfg.TEST.POSTPROCESS.WINDOW,
        }

    def __call__(self, detections: VideoDetections) -> Rescored:
        return smooth_scores(detections, self.link_iou, self.window)


def smooth_scores(detections: VideoDetections, link_iou: float = 0.5, window: int = 5) -> Rescored:
    """Give each detection the mean score of its track within a window around its frame.

    A track joins detections of a class in consecutive frames, of which each is the other's most
    overlapping one in its frame, and overlaps it by more than ``link_iou``. Where a track begins
    or ends within the window, the mean is over what there is of it. No detection is dropped.

    Args:
        detections: of one video.
        link_iou: see above.
        window: frames, an odd number: as many before as after.

    Returns:
        All detections, with their new scores.
    """
    ordered = SortedDetections(detections)
    count = len(ordered.order)
    track = _track_heads(ordered, link_iou)
    along = np.lexsort((ordered.frame, track))
    score, track = ordered.score[along], track[along]
    total, members = score.copy(), np.ones(count)
    # A track has a detection in each frame from its first to its last: the one ``shift`` frames on
    # is ``shift`` places on.
    for shift in range(1, min(window // 2, count - 1) + 1):
        same = np.flatnonzero(track[shift:] == track[:-shift])
        total[same] += score[same + shift]
        total[same + shift] += score[same]
        members[same] += 1
        members[same + shift] += 1
    result = np.empty(count)
    result[ordered.order[along]] = total / members
    return Rescored(np.arange(count), result)


def _track_heads(ordered: SortedDetections, link_iou: float) -> np.ndarray:
    """(N,) the first detection of each one's track."""
    links = ordered.links(link_iou)
    head = np.arange(len(ordered.order))
    mutual = _is_best(links.first, links.second, links.iou)
    mutual &= _is_best(links.second, links.first, links.iou)
    head[links.second[mutual]] = links.first[mutual]
    # Each step doubles how far a detection sees back along its track.
    while not np.array_equal(further := head[head], head):
        head = further
    return head


def _is_best(node: np.ndarray, partner: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """(P,) bool: whether the pair has its node's largest IoU; of equals, the first partner."""
    order = np.lexsort((partner, -iou, node))
    best = np.zeros(len(node), dtype=bool)
    best[order] = np.diff(node[order], prepend=-1) != 0
    return best
