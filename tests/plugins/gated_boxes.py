"""Aggregation after each FC layer: a gated mean of what the reference RoIs say."""

import torch
from detectron2.config import configurable
from torch import nn

from clab_d2.modeling import BOX_AGGREGATION_REGISTRY, BoxAggregation


@BOX_AGGREGATION_REGISTRY.register()
class GatedBoxes(BoxAggregation):
    @configurable
    def __init__(self, dim):
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)

    @classmethod
    def from_config(cls, cfg, dim):
        return {"dim": dim}

    def encode_references(self, features):
        # Of reference RoIs alone, so made once a frame and kept: (M, C)
        return (self.value(features),)

    def forward(self, features, references, counts):
        (values,) = references
        counts = torch.ones_like(values[:, 0]) if counts is None else counts
        mean = (counts[:, None] * values).sum(dim=0) / counts.sum().clamp(min=1)
        return features + self.gate(features).sigmoid() * mean
