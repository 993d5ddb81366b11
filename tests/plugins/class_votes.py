"""Aggregation on predictions: the references' scores vote, by likeness of their features."""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from clab_d2.modeling import PREDICTION_AGGREGATION_REGISTRY, PredictionAggregation


@PREDICTION_AGGREGATION_REGISTRY.register()
class ClassVotes(PredictionAggregation):
    @configurable
    def __init__(self, dim):
        super().__init__()
        self.embed = nn.Linear(dim, dim)
        self.share = nn.Parameter(torch.tensor(-2.0))

    @classmethod
    def from_config(cls, cfg, dim, num_classes):
        return {"dim": dim}

    def encode_references(self, cls_features, box_features, score_logits):
        # Of reference predictions alone, so made once a frame and kept: (M, D), (M, K)
        return F.normalize(self.embed(cls_features), dim=1), score_logits

    def forward(self, cls_features, box_features, score_logits, references, counts):
        embeddings, logits = references
        own = F.normalize(self.embed(cls_features), dim=1)
        weights = (10 * own @ embeddings.T).exp().to(logits.dtype)
        if counts is not None:
            weights = weights * counts
        total = weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
        votes = weights @ logits / total
        share = self.share.sigmoid()
        return torch.where(total > 1e-6, score_logits.lerp(votes, share), score_logits)
