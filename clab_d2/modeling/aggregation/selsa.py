"""SELSA: the key frame's proposals attend to the proposals of all reference frames.

Source: "Sequence Level Semantics Aggregation for Video Object Detection" (ICCV 2019), with the
multi-head form of the CLAB release: after every fully connected layer, each key-frame RoI attends
to all RoIs of all reference frames. The reference side never sees the key frame, so what it
contributes (keys and values of every layer) can be computed once a frame and kept.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.base import BOX_AGGREGATION_REGISTRY, BoxAggregation


class KeyValue(NamedTuple):
    """What M reference RoIs contribute to one SELSA block.

    Attributes:
        keys: (heads, M, C / heads).
        values: (heads, M, C / heads).
    """

    keys: Tensor
    values: Tensor


@BOX_AGGREGATION_REGISTRY.register()
class SELSA(BoxAggregation):
    """Multi-head attention from key-frame RoIs to reference RoIs, added to the former.

    ``x + W_o . softmax(q(x) k(ref)^T / sqrt(C / heads)) v(ref)``, every map affine; the softmax
    runs over the RoIs of all reference frames together.
    """

    @configurable
    def __init__(self, dim: int, num_heads: int = 16) -> None:
        """
        Args:
            dim: number of channels C.
            num_heads: number of heads; must divide ``dim``.
        """
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(
                f"MODEL.SELSA.NUM_HEADS {num_heads} does not divide the {dim} channels of "
                "MODEL.ROI_BOX_HEAD.FC_DIM; change one of them"
            )
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, dim: int) -> dict[str, Any]:
        return {"dim": dim, "num_heads": cfg.MODEL.SELSA.NUM_HEADS}

    def start_as_identity(self) -> None:
        """An output map of zeros; it gets a gradient at once, the others once it has moved."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, C) -> (heads, N, C / heads)."""
        return x.unflatten(1, (self.num_heads, -1)).transpose(0, 1)

    def encode_references(self, features: Tensor) -> KeyValue:
        """Keys and values of M reference RoIs from their features (M, C)."""
        return KeyValue(
            self._split_heads(self.key(features)), self._split_heads(self.value(features))
        )

    def attention_weights(
        self, features: Tensor, references: KeyValue, counts: Tensor | None = None
    ) -> Tensor:
        """How much of each reference RoI's value :meth:`forward` takes, to look at.

        ``forward`` itself never has these: they stay inside PyTorch's attention.

        Args: as :meth:`forward`.

        Returns:
            (heads, R, M); each row sums to 1.
        """
        keys, _ = references
        query = self._split_heads(self.query(features))
        logits = query @ keys.transpose(1, 2) / math.sqrt(query.shape[-1])
        if counts is not None:
            logits = logits + counts.log().to(logits.dtype)
        return logits.softmax(dim=-1)

    def forward(
        self, features: Tensor, references: KeyValue, counts: Tensor | None = None
    ) -> Tensor:
        """See :meth:`BoxAggregation.forward`; ``references`` are keys and values."""
        keys, values = references
        query = self._split_heads(self.query(features))
        # A logarithm added to the logits equals repeating the RoI.
        mask = None if counts is None else counts.log().to(query.dtype).expand(len(features), -1)
        attended = F.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=mask
        )[0]
        return features + self.output(attended.transpose(0, 1).flatten(1))
