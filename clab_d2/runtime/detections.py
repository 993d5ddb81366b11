"""Which of a key frame's predictions are detections: scores, overlaps, the best so many."""

from __future__ import annotations

import numpy as np

from clab_d2.runtime.instances import ArrayBoxes, ArrayInstances


def select_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    image_size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> ArrayInstances:
    """What Detectron2's ``fast_rcnn_inference`` gives.

    Args:
        boxes: (N, 1, 4), or (N, K, 4) where each class has its own.
        scores: (N, K).
        image_size: (height, width), which boxes are cut to.
        score_threshold: detections are above it.
        nms_threshold: IoU with a better one of the same class, above which one is left out.
        max_detections: how many are kept; all where negative.

    Returns:
        ``pred_boxes``, ``scores`` (falling) and ``pred_classes``.
    """
    finite = np.isfinite(boxes).all(axis=(1, 2)) & np.isfinite(scores).all(axis=1)
    boxes = np.clip(boxes[finite], 0, np.array([*image_size[::-1]] * 2, np.float32))
    rows, classes = np.nonzero(scores[finite] > score_threshold)
    found = scores[finite][rows, classes]
    order = np.argsort(-found, kind="stable")
    rows, classes, found = rows[order], classes[order], found[order]
    boxes = boxes[rows, classes if boxes.shape[1] > 1 else 0]
    kept = greedy_nms(boxes, classes, nms_threshold, max_detections)
    return ArrayInstances(
        image_size,
        pred_boxes=ArrayBoxes(boxes[kept]),
        scores=found[kept],
        pred_classes=classes[kept].astype(np.int64),
    )


def greedy_nms(
    boxes: np.ndarray, classes: np.ndarray, iou_threshold: float, most: int = -1
) -> np.ndarray:
    """Rows that overlap no better one of their class, that is kept, by more than the threshold.

    Args:
        boxes: (N, 4), best first.
        classes: (N,).
        iou_threshold: from 0 to 1.
        most: how many are wanted; all where negative.

    Returns:
        (K,) their numbers, rising.
    """
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    areas = (x2 - x1) * (y2 - y1)
    left = np.ones(len(boxes), bool)
    kept: list[int] = []
    while most < 0 or len(kept) < most:
        row = int(left.argmax()) if left.size else 0
        if not left.size or not left[row]:
            break
        kept.append(row)
        left[row] = False
        width = np.minimum(x2, x2[row]) - np.maximum(x1, x1[row])
        height = np.minimum(y2, y2[row]) - np.maximum(y1, y1[row])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        # As a product: a union of 0, of two boxes without extent, overlaps nothing.
        union = areas + areas[row] - shared
        left &= (shared <= iou_threshold * union) | (classes != classes[row])
    return np.array(kept, dtype=np.int64)


def scale_detections(found: ArrayInstances, size: tuple[int, int]) -> ArrayInstances:
    """Detections in an image as those in the frame that it was resized from; Detectron2's
    ``detector_postprocess``.

    Args:
        found: in pixels of the image.
        size: (height, width) of the frame.
    """
    height, width = found.image_size
    scale = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    limit = np.array([size[1], size[0]] * 2, np.float32)
    boxes = np.clip(found.pred_boxes.tensor * scale, 0, limit)
    scaled = ArrayInstances(size, **{**found.get_fields(), "pred_boxes": ArrayBoxes(boxes)})
    return scaled[((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)]


def no_detections(size: tuple[int, int]) -> ArrayInstances:
    """Of a frame that can't be read."""
    return ArrayInstances(
        size,
        pred_boxes=ArrayBoxes(np.zeros((0, 4))),
        scores=np.zeros(0, np.float32),
        pred_classes=np.zeros(0, np.int64),
    )
