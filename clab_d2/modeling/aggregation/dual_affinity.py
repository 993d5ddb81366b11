"""Selected predictions attend to those of other frames, by what both towers make of them.

Source: "YOLOV: Making Still Image Object Detectors Great at Video Object Detection" (AAAI 2023) and
YOLOV++ ("Practical Video Object Detection via Feature Selection and Aggregation", 2024): affinities
of classification and of regression features are both turned into weights, the references' own
scores count in these, and classes are predicted anew from what a prediction has and what it
gathered. Here the score counts as a factor of the weight (its logarithm is added to the logits), so
that a confident view of the object outweighs a doubtful one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.base import (
    PREDICTION_AGGREGATION_REGISTRY,
    PredictionAggregation,
)


class References(NamedTuple):
    """What M reference predictions contribute.

    Attributes:
        keys: (2, heads, M, E / heads), of both towers, of length 1.
        values: (heads, M, E / heads).
        log_scores: (M, 1), of the best class.
    """

    keys: Tensor
    values: Tensor
    log_scores: Tensor


@PREDICTION_AGGREGATION_REGISTRY.register()
class DualAffinity(PredictionAggregation):
    """``logits + f(own, (A_cls + A_box) / 2 . values)``, ``A = softmax(s cos(q, k) + w log p)``.

    Each head and tower has a scale s; p is the reference's best score, and w its exponent.
    """

    @configurable
    def __init__(
        self, dim: int, num_classes: int, embed_dim: int = 128, num_heads: int = 4
    ) -> None:
        """
        Args:
            dim: channels D of each tower.
            num_classes: number of classes K.
            embed_dim: channels E of queries, keys and values.
            num_heads: number of heads; must divide ``embed_dim``.
        """
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(
                f"MODEL.DUAL_AFFINITY.NUM_HEADS {num_heads} does not divide "
                f"MODEL.DUAL_AFFINITY.DIM {embed_dim}; change one of them"
            )
        self.num_heads = num_heads
        self.query_cls, self.query_box = nn.Linear(dim, embed_dim), nn.Linear(dim, embed_dim)
        self.key_cls, self.key_box = nn.Linear(dim, embed_dim), nn.Linear(dim, embed_dim)
        self.value = nn.Linear(dim, embed_dim)
        self.log_scale = nn.Parameter(torch.full((2, num_heads, 1, 1), 2.0))
        self.score_exponent = nn.Parameter(torch.ones(()))
        self.own = nn.Linear(2 * dim, embed_dim)
        self.gathered = nn.Linear(embed_dim, embed_dim)
        self.hidden = nn.Linear(embed_dim, embed_dim)
        self.output = nn.Linear(embed_dim, num_classes)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, dim: int, num_classes: int) -> dict[str, Any]:
        affinity = cfg.MODEL.DUAL_AFFINITY
        return {
            "dim": dim,
            "num_classes": num_classes,
            "embed_dim": affinity.DIM,
            "num_heads": affinity.NUM_HEADS,
        }

    def start_as_identity(self) -> None:
        """An output map of zeros; it gets a gradient at once, the others once it has moved."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, E) -> (heads, N, E / heads)."""
        return x.unflatten(1, (self.num_heads, -1)).transpose(0, 1)

    def _unit(self, cls: Tensor, box: Tensor) -> Tensor:
        """(N, E) of both towers -> (2, heads, N, E / heads) of length 1."""
        return F.normalize(torch.stack([self._split_heads(cls), self._split_heads(box)]), dim=-1)

    def encode_references(
        self, cls_features: Tensor, box_features: Tensor, score_logits: Tensor
    ) -> References:
        """See :meth:`PredictionAggregation.encode_references`."""
        return References(
            self._unit(self.key_cls(cls_features), self.key_box(box_features)),
            self._split_heads(self.value(cls_features)),
            F.logsigmoid(score_logits.amax(dim=1, keepdim=True)),
        )

    def forward(
        self,
        cls_features: Tensor,
        box_features: Tensor,
        score_logits: Tensor,
        references: References,
        counts: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`PredictionAggregation.forward`."""
        keys, values, log_scores = references
        query = self._unit(self.query_cls(cls_features), self.query_box(box_features))
        bias = self.score_exponent * log_scores[:, 0]
        if counts is not None:
            bias = bias + counts.log()  # equals repeating the prediction
        logits = (query * self.log_scale.exp()) @ keys.transpose(-1, -2) + bias
        weights = logits.softmax(dim=-1).mean(dim=0).to(values.dtype)
        gathered = (weights @ values).transpose(0, 1).flatten(1)
        own = self.own(torch.cat([cls_features, box_features], dim=1))
        hidden = F.relu(own + self.gathered(gathered))
        return score_logits + self.output(F.relu(self.hidden(hidden)))
