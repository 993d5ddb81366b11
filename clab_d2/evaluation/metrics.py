"""All metrics of a set of detections, by one function: for training and for files alike."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tabulate import tabulate

from clab_d2.evaluation.boxes import xywh_to_xyxy
from clab_d2.evaluation.coco_metric import coco_precision
from clab_d2.evaluation.detections import Detections
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.evaluation.vid_metric import VIDPrecision, mean_over_classes

logger = logging.getLogger(__name__)

#: The names that metrics.json and the tables use for the subsets of objects, in their order.
VID_NAMES = {"AP50": "all", "AP50-slow": "slow", "AP50-medium": "medium", "AP50-fast": "fast"}


@dataclass(frozen=True)
class Metrics:
    """Everything that is measured, in percent; NaN where there is nothing to be found.

    Attributes:
        bbox: COCO's AP, AP50, AP75, APs, APm and APl.
        vid: mean over classes of the VID metric: AP50, AP50-slow, AP50-medium and AP50-fast.
        vid_per_class: for each of these, the figure of each class by name.
        vid_by_condition: AP50 of the objects seen under each condition that annotations name.
    """

    bbox: dict[str, float]
    vid: dict[str, float]
    vid_per_class: dict[str, dict[str, float]]
    vid_by_condition: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``: plain numbers, null for NaN.

        ``vid`` also holds "per-class", the AP50 of each class by name, and "per-class-slow",
        "per-class-medium" and "per-class-fast"; and, where annotations name conditions,
        "by-condition".
        """
        per_class = {
            name.replace("AP50", "per-class"): _nulls(figures)
            for name, figures in self.vid_per_class.items()
        }
        vid: dict[str, Any] = {**_nulls(self.vid), **per_class}
        if self.vid_by_condition:
            vid["by-condition"] = _nulls(self.vid_by_condition)
        return {"bbox": _nulls(self.bbox), "vid": vid}

    def table(self) -> str:
        """One table: COCO's figures, the VID figures, and these by class."""
        rows: list[list[Any]] = [["all classes", *self.vid.values()]]
        for name in self.vid_per_class["AP50"]:
            figures = [by_class[name] for by_class in self.vid_per_class.values()]
            if not all(map(math.isnan, figures)):  # a class without objects has nothing to tell
                rows.append([name, *figures])
        vid = tabulate(
            [[row[0], *map(_figure, row[1:])] for row in rows],
            headers=["VID", *self.vid],
            tablefmt="pipe",
            disable_numparse=True,
            colalign=("left", *["right"] * len(self.vid)),
        )
        coco = ", ".join(f"{name} {_figure(value)}" for name, value in self.bbox.items())
        return f"{vid}\nCOCO box: {coco}"


def compute_metrics(
    truth: GroundTruth, detections: Detections, precision: VIDPrecision | None = None
) -> Metrics:
    """Measure detections: the COCO box AP and the VID AP50.

    No detections at all, or nothing to be found, gives a warning and zeros or NaN.

    Args:
        truth: what there is to be found.
        detections: in the annotated frames.
        precision: :func:`vid_precision` of the two, if there is one already.
    """
    if len(detections.score) == 0:
        logger.warning("There are no detections in the annotated frames of %s", truth.source)
    if len(truth.image) == 0:
        logger.warning(
            "%s has no object in an annotated frame: there is nothing to measure", truth.source
        )
    num_classes = len(truth.class_names)
    bbox = coco_precision(
        truth.image,
        truth.box,
        truth.class_index,
        truth.area,
        truth.crowd,
        detections.image,
        detections.box,
        detections.class_index,
        detections.score,
        num_classes,
    ).summary()
    if precision is None:
        precision = vid_precision(truth, detections)
    vid, per_class = {}, {}
    for name, subset in VID_NAMES.items():
        ap = 100 * precision.average_precision(subset)
        vid[name] = mean_over_classes(ap)
        per_class[name] = dict(zip(truth.class_names, ap.tolist(), strict=True))
    return Metrics(
        {name: 100 * value for name, value in bbox.items()},
        vid,
        per_class,
        _by_condition(truth, detections),
    )


def vid_precision(truth: GroundTruth, detections: Detections) -> VIDPrecision:
    """What the VID metric makes of detections in a dataset."""
    return _vid_precision(truth, detections, truth.motion_iou)


def _by_condition(truth: GroundTruth, detections: Detections) -> dict[str, float]:
    """AP50 of the objects under each condition, by the metric's rules for a speed.

    For a condition its objects pass for slow ones, all others for fast ones.
    """
    found = {}
    for index, name in enumerate(truth.condition_names):
        is_slow = np.where(truth.condition == index, 1.0, 0.0)
        precision = _vid_precision(truth, detections, is_slow)
        found[name] = mean_over_classes(100 * precision.average_precision("slow"))
    return found


def _vid_precision(
    truth: GroundTruth, detections: Detections, motion_iou: np.ndarray
) -> VIDPrecision:
    return VIDPrecision(
        truth.image,
        xywh_to_xyxy(truth.box),
        truth.class_index,
        motion_iou,
        detections.image,
        xywh_to_xyxy(detections.box),
        detections.class_index,
        detections.score,
        len(truth.class_names),
        gt_never=truth.crowd,
    )


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _nulls(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else float(value) for name, value in figures.items()}
