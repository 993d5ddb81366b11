"""How fast an object moves: the overlap of its box with its own boxes in nearby frames.

ImageNet VID results are split by motion IoU (FGFA, Zhu et al., ICCV 2017): the mean IoU of an
object's box with the same object's boxes in the 10 frames before and the 10 after. Everything here
is a pure function of NumPy arrays.
"""

from __future__ import annotations

import numpy as np

from clab_d2.evaluation.boxes import paired_iou

#: Frames on each side that an object's box is compared with.
WINDOW = 10

#: An object is fast below the first number, slow above the second, and medium in between.
FAST_BELOW = 0.7
SLOW_ABOVE = 0.9

#: Motion IoU of an object with nothing to compare it with: nothing shows that it moves.
ALONE = 1.0

FAST, MEDIUM, SLOW = 0, 1, 2
SPEED_NAMES = ("fast", "medium", "slow")

#: Speed code of objects whose motion nothing tells.
UNKNOWN = len(SPEED_NAMES)


def motion_speed(motion_iou: np.ndarray) -> np.ndarray:
    """Sort objects by speed.

    Args:
        motion_iou: (N,) motion IoUs in [0, 1]; NaN where it is unknown.

    Returns:
        (N,) int8: ``SLOW`` above 0.9, ``MEDIUM`` from 0.7 to 0.9 (both included), ``FAST`` below
        0.7, ``UNKNOWN`` for NaN.
    """
    motion_iou = np.asarray(motion_iou, dtype=np.float64)
    speed = np.full(motion_iou.shape, MEDIUM, dtype=np.int8)
    speed[motion_iou < FAST_BELOW] = FAST
    speed[motion_iou > SLOW_ABOVE] = SLOW
    speed[np.isnan(motion_iou)] = UNKNOWN
    return speed


def motion_iou_from_tracks(
    video_ids: np.ndarray,
    instance_ids: np.ndarray,
    frame_ids: np.ndarray,
    boxes: np.ndarray,
    *,
    window: int = WINDOW,
) -> np.ndarray:
    """Mean IoU of each box with the same object's boxes at most ``window`` frames away.

    Frames in which the object has no box (it left, it is hidden) do not count, and neither does
    the box itself. An object seen in one frame only, or with no other box within the window, has
    nothing to compare with: it counts as still, 1.0. So does any object of a still image.

    Args:
        video_ids: (N,) integers.
        instance_ids: (N,) integers, the object's number within its video.
        frame_ids: (N,) integers, 0-based.
        boxes: (N, 4) xyxy in pixels (plain geometry: the width is x2 - x1).
        window: frames to each side.

    Returns:
        (N,) float64 in [0, 1], in the order given.
    """
    video_ids = np.asarray(video_ids, dtype=np.int64)
    instance_ids = np.asarray(instance_ids, dtype=np.int64)
    frame_ids = np.asarray(frame_ids, dtype=np.int64)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    order = np.lexsort((frame_ids, instance_ids, video_ids))
    video, instance, frame = video_ids[order], instance_ids[order], frame_ids[order]
    box = boxes[order]

    total = np.zeros(count)
    neighbours = np.zeros(count, dtype=np.int64)
    # Sorted by track and frame, the neighbours of a box are the next few rows: compare all boxes
    # with the one ``shift`` rows on, until none of those is near enough (10 rounds for 10 frames).
    for shift in range(1, count):
        distance = frame[shift:] - frame[:-shift]
        same_track = (video[shift:] == video[:-shift]) & (instance[shift:] == instance[:-shift])
        near = np.flatnonzero(same_track & (distance <= window))
        if len(near) == 0:
            break
        # Two boxes of one object in one frame (bad data) say nothing about motion.
        near = near[distance[near] > 0]
        iou = paired_iou(box[near], box[near + shift])
        total[near] += iou
        total[near + shift] += iou
        neighbours[near] += 1
        neighbours[near + shift] += 1

    result = np.empty(count)
    result[order] = np.where(neighbours > 0, total / np.maximum(neighbours, 1), ALONE)
    return result
