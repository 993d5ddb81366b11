"""Post-processing: a detection without its like in the frame before or after loses score."""

import numpy as np
from detectron2.config import configurable

from clab_d2 import extend_config
from clab_d2.errors import ConfigError
from clab_d2.postprocessing import POSTPROCESSING_REGISTRY, PostProcessing, Rescored
from clab_d2.postprocessing.links import SortedDetections


@extend_config
def add_keys(cfg):
    cfg.TEST.POSTPROCESS.LONELY_FACTOR = 0.5


@POSTPROCESSING_REGISTRY.register(name="doubt_lonely")
class DoubtLonely(PostProcessing):
    @configurable
    def __init__(self, link_iou=0.5, factor=0.5):
        if not 0 <= factor <= 1:
            raise ConfigError(f"TEST.POSTPROCESS.LONELY_FACTOR is {factor}, not from 0 to 1")
        self.link_iou = link_iou
        self.factor = factor

    @classmethod
    def from_config(cls, cfg):
        keys = cfg.TEST.POSTPROCESS
        return {"link_iou": keys.LINK_IOU, "factor": keys.LONELY_FACTOR}

    def __call__(self, detections):
        # Sorted by frame and class; links name places in that order.
        ordered = SortedDetections(detections)
        links = ordered.links(self.link_iou)
        linked = ordered.order[np.union1d(links.first, links.second)]
        score = detections.score * self.factor
        score[linked] = detections.score[linked]
        return Rescored(np.arange(len(score)), score)
