"""Post-processing of a whole video's detections: scores that know of neighbouring frames."""

from clab_d2.postprocessing.base import (
    POSTPROCESSING_REGISTRY,
    PostProcessing,
    Rescored,
    VideoDetections,
    build_postprocessing,
)
from clab_d2.postprocessing.instances import postprocess_instances
from clab_d2.postprocessing.results import PostProcessResults
from clab_d2.postprocessing.seq_nms import SeqNMS, seq_nms
from clab_d2.postprocessing.smooth_scores import SmoothScores, smooth_scores

__all__ = [
    "POSTPROCESSING_REGISTRY",
    "PostProcessResults",
    "PostProcessing",
    "Rescored",
    "SeqNMS",
    "SmoothScores",
    "VideoDetections",
    "build_postprocessing",
    "postprocess_instances",
    "seq_nms",
    "smooth_scores",
]
