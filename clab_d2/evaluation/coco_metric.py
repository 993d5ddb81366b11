"""COCO's box AP from flat arrays: what pycocotools computes, digit for digit, in minutes.

pycocotools holds a Python dict per detection and loops over images, classes, sizes and thresholds
in Python, which at 17 million detections takes hours and tens of GB. The definitions are COCO's
(https://cocodataset.org/#detection-eval): IoU thresholds 0.50 to 0.95, 101 recall points, at most
100 detections a class and image, crowds that any number of detections may fall into, and objects
outside a range of sizes ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clab_d2.evaluation.matching import find_candidates, lay_out, match_greedily

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100
#: Areas in square pixels, both ends included; an object on a border is of both sizes.
SIZES = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


@dataclass(frozen=True)
class COCOPrecision:
    """Precision at every threshold, recall point, class and size.

    Attributes:
        precision: for each of :data:`SIZES`, (10, 101, num_classes); NaN for a class without
            objects of that size.
    """

    precision: dict[str, np.ndarray]

    def summary(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm and APl, from 0 to 1; NaN where there is nothing to be found."""
        every = self.precision["all"]
        return {
            "AP": _mean(every),
            "AP50": _mean(every[IOU_THRESHOLDS == 0.5]),
            "AP75": _mean(every[IOU_THRESHOLDS == 0.75]),
            "APs": _mean(self.precision["small"]),
            "APm": _mean(self.precision["medium"]),
            "APl": _mean(self.precision["large"]),
        }


def box_overlap(detection: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of each of (P, 4) detected boxes xywh with the object in the same row.

    With a crowd, ``crowd`` (P,) bool, it is the share of the detection that lies inside.
    """
    x, y, width, height = truth.T
    dx, dy, d_width, d_height = detection.T
    inner_width = np.minimum(d_width + dx, width + x) - np.maximum(dx, x)
    inner_height = np.minimum(d_height + dy, height + y) - np.maximum(dy, y)
    meets = (inner_width > 0) & (inner_height > 0)
    intersection = inner_width * inner_height
    area = d_width * d_height
    union = np.where(crowd, area, area + width * height - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=meets)


def coco_precision(
    gt_image: np.ndarray,
    gt_box: np.ndarray,
    gt_class: np.ndarray,
    gt_area: np.ndarray,
    gt_crowd: np.ndarray,
    dt_image: np.ndarray,
    dt_box: np.ndarray,
    dt_class: np.ndarray,
    dt_score: np.ndarray,
    num_classes: int,
) -> COCOPrecision:
    """Evaluate N detections against M objects.

    Args:
        gt_image: (M,) integers; the images' order decides between equal scores.
        gt_box: (M, 4) xywh in pixels.
        gt_class: (M,) integers from 0 to ``num_classes`` - 1.
        gt_area: (M,) in square pixels, which decides about the size.
        gt_crowd: (M,) bool.
        dt_image, dt_box, dt_class: the same for N detections.
        dt_score: (N,).
        num_classes: how many classes there are.

    Raises:
        ValueError: a class is out of range.
    """
    keep = _best_of_each_image(dt_image, dt_class, dt_score)
    if keep is not None:
        dt_image, dt_box, dt_class, dt_score = (
            column[keep] for column in (dt_image, dt_box, dt_class, dt_score)
        )
    layout = lay_out(gt_image, gt_class, dt_image, dt_class, dt_score, num_classes)
    gt_order = layout.gt_order
    gt_class, gt_area, gt_crowd = gt_class[gt_order], gt_area[gt_order], gt_crowd[gt_order]
    candidates = find_candidates(
        layout,
        gt_box[gt_order],
        dt_box,
        lambda boxes, truth, objects: box_overlap(boxes, truth, gt_crowd[objects]),
        float(IOU_THRESHOLDS[0]),
        last_of_equals=True,
    )

    dt_area = (dt_box[:, 2] * dt_box[:, 3])[layout.order]
    num_rivals = len(layout.rival)
    class_of_rival = np.searchsorted(layout.class_start, layout.rival, side="right") - 1
    # From here on rivals by class, then by falling score, as the curves need them.
    by_rank = np.argsort(layout.rival, kind="stable")
    rival, class_of_rival = layout.rival[by_rank], class_of_rival[by_rank]
    first_rival = np.searchsorted(class_of_rival, np.arange(num_classes + 1))

    result = {}
    for size, (low, high) in SIZES.items():
        ignored = gt_crowd | (gt_area < low) | (gt_area > high)
        positives = np.bincount(gt_class[~ignored], minlength=num_classes)
        # A detection that finds nothing is wrong, unless it is of another size. Found ones are few,
        # so count all as wrong first, up to each detection of its class, and then take those off.
        wrong = (dt_area >= low) & (dt_area <= high)
        wrong_so_far = np.concatenate([[0], np.cumsum(wrong)])
        precision = np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS), num_classes), np.nan)
        for row, threshold in enumerate(IOU_THRESHOLDS):
            match = match_greedily(
                candidates,
                num_rivals,
                ignored,
                threshold=float(threshold),
                counted_first=True,
                shared=gt_crowd,
            )[by_rank]
            found = match >= 0
            right = found.copy()
            right[found] = ~ignored[match[found]]
            found_but_wrong = np.cumsum(found & wrong[rival])
            for index in np.flatnonzero(positives):
                part = slice(first_rival[index], first_rival[index + 1])
                start = layout.class_start[index]
                hits = part.start + np.flatnonzero(right[part])
                before = found_but_wrong[part.start - 1] if part.start else 0
                num_wrong = (
                    wrong_so_far[rival[hits] + 1]
                    - wrong_so_far[start]
                    - (found_but_wrong[hits] - before)
                )
                precision[row, :, index] = _at_recall_points(num_wrong, int(positives[index]))
        result[size] = precision
    return COCOPrecision(result)


def _at_recall_points(num_wrong: np.ndarray, positives: int) -> np.ndarray:
    """(101,) best precision at or beyond each recall, given the false alarms above each hit."""
    num_right = np.arange(1, len(num_wrong) + 1, dtype=np.float64)
    # The tiny number is pycocotools' guard against 0 / 0; without it the last digit may differ.
    precision = num_right / (num_wrong + num_right + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(num_right / positives, RECALL_POINTS, side="left")
    return np.append(precision, 0.0)[np.minimum(place, len(precision))]


def _best_of_each_image(
    image: np.ndarray, classes: np.ndarray, score: np.ndarray
) -> np.ndarray | None:
    """The detections among the 100 best of their class and image, in order; None if all are."""
    if len(image) == 0 or np.bincount(image).max() <= MAX_DETECTIONS:
        return None
    order = np.lexsort((-score, classes, image))
    new = np.flatnonzero(
        (np.diff(image[order], prepend=-1) != 0) | (np.diff(classes[order], prepend=-1) != 0)
    )
    rank = np.arange(len(order)) - np.repeat(new, np.diff(new, append=len(order)))
    return np.sort(order[rank < MAX_DETECTIONS])


def _mean(precision: np.ndarray) -> float:
    known = precision[~np.isnan(precision)]
    return float(np.mean(known)) if len(known) else float("nan")
