"""Evaluation: the VID metric, COCO's box AP, and the evaluator that computes both."""

from clab_d2.evaluation.metrics import Metrics, compute_metrics
from clab_d2.evaluation.records import Columns, Detections, GroundTruth
from clab_d2.evaluation.vid_evaluator import VIDEvaluator, write_predictions
from clab_d2.evaluation.vid_metric import vid_average_precision

__all__ = [
    "Columns",
    "Detections",
    "GroundTruth",
    "Metrics",
    "VIDEvaluator",
    "compute_metrics",
    "vid_average_precision",
    "write_predictions",
]
