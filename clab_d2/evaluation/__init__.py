"""Evaluation: the VID metric, COCO's box AP, and the evaluator that computes both."""

from clab_d2.evaluation.detections import COCOResults, Detections
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.evaluation.metrics import Metrics, compute_metrics
from clab_d2.evaluation.vid_evaluator import VIDEvaluator, write_predictions
from clab_d2.evaluation.vid_metric import vid_average_precision

__all__ = [
    "COCOResults",
    "Detections",
    "GroundTruth",
    "Metrics",
    "VIDEvaluator",
    "compute_metrics",
    "vid_average_precision",
    "write_predictions",
]
