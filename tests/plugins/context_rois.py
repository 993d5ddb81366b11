"""Aggregation on RoI features: each RoI learns how much of the references' mean map it wants."""

import torch
from detectron2.config import configurable
from torch import nn

from clab_d2.modeling import ROI_AGGREGATION_REGISTRY, RoIAggregation


@ROI_AGGREGATION_REGISTRY.register()
class ContextRoIs(RoIAggregation):
    @configurable
    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Linear(2 * channels, channels)

    @classmethod
    def from_config(cls, cfg, channels):
        return {"channels": channels}

    def forward(
        self, roi_features, boxes, feature, references, counts, *, scale, sampling_ratio, cat
    ):
        # The mean over a frame's positions, then over frames, repeats counted: (C,)
        means = [
            count * frame.mean(dim=(1, 2))
            for frame, count in zip(references, counts, strict=True)
        ]
        context = (sum(means) / sum(counts)).expand(len(roi_features), -1)
        own = roi_features.mean(dim=(2, 3))
        gate = self.gate(torch.cat([own, context], dim=1)).sigmoid()
        return roi_features + (gate * context)[:, :, None, None].to(roi_features.dtype)
