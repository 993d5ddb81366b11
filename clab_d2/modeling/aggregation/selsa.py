"""SELSA: aggregation over the proposals of all reference frames, and the box head made of it.

Source: "Sequence Level Semantics Aggregation for Video Object Detection" (ICCV 2019), with the
multi-head form of the CLAB release: after every fully connected layer, each key-frame RoI attends
to all RoIs of all reference frames. The reference side never sees the key frame, so what it
contributes (keys and values of every layer) can be computed once a frame and kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from torch import Tensor, nn

from clab_d2.errors import ConfigError


class KeyValue(NamedTuple):
    """What M reference RoIs contribute to one SELSA block.

    Attributes:
        keys: (heads, M, C / heads).
        values: (heads, M, C / heads).
    """

    keys: Tensor
    values: Tensor


class SELSABlock(nn.Module):
    """Multi-head attention from key-frame RoIs to reference RoIs.

    ``out = W_o . softmax(q(x) k(ref)^T / sqrt(C / heads)) v(ref)``, every map affine; the softmax
    runs over the RoIs of all reference frames together.
    """

    def __init__(self, dim: int, num_heads: int = 16) -> None:
        """
        Args:
            dim: number of channels C.
            num_heads: number of heads; must divide ``dim``.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide {dim} channels")
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, C) -> (heads, N, C / heads)."""
        return x.unflatten(1, (self.num_heads, -1)).transpose(0, 1)

    def encode_references(self, reference: Tensor) -> KeyValue:
        """
        Args:
            reference: (M, C) features of reference RoIs.
        """
        return KeyValue(
            self._split_heads(self.key(reference)), self._split_heads(self.value(reference))
        )

    def forward(self, x: Tensor, references: KeyValue, log_counts: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (R, C) features of key-frame RoIs.
            references: keys and values of M reference RoIs.
            log_counts: (M,) logarithm of how often each reference RoI counts, if not once each:
                adding it to the logits equals repeating the RoI.

        Returns:
            (R, C), to be added to ``x``.
        """
        query = self._split_heads(self.query(x))
        mask = None if log_counts is None else log_counts.to(query.dtype).expand(len(x), -1)
        attended = F.scaled_dot_product_attention(
            query[None], references.keys[None], references.values[None], attn_mask=mask
        )[0]
        return self.output(attended.transpose(0, 1).flatten(1))


@ROI_BOX_HEAD_REGISTRY.register()
class SELSABoxHead(nn.Module):
    """Fully connected layers, each followed by a SELSA block (none: a plain FC head).

    ``x' = relu(fc(x) + selsa(fc(x), fc(ref)))`` and ``ref' = relu(fc(ref))``, the FC shared.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        fc_dims: Sequence[int],
        num_heads: int | None,
        norm: str = "",
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of the RoI features.
            fc_dims: output channels of each FC layer.
            num_heads: attention heads of the SELSA blocks; None for no aggregation.
            norm: "LN" makes each FC a linear map and a layer norm, which training from scratch
                wants; "" (the paper's) a linear map alone.
        """
        super().__init__()
        if not fc_dims:
            raise ValueError("a box head needs at least one FC layer")
        if norm not in ("", "LN"):
            raise ConfigError(f"MODEL.ROI_BOX_HEAD.NORM {norm!r} is unknown here; use '' or 'LN'")
        dim = input_shape.channels * (input_shape.height or 1) * (input_shape.width or 1)
        self.fcs = nn.ModuleList()
        for fc_dim in fc_dims:
            fc = nn.Linear(dim, fc_dim)
            weight_init.c2_xavier_fill(fc)
            self.fcs.append(fc)
            dim = fc_dim
        self.norms = nn.ModuleList(
            nn.LayerNorm(fc_dim) if norm else nn.Identity() for fc_dim in fc_dims
        )
        self.selsa = nn.ModuleList(
            [] if num_heads is None else [SELSABlock(fc_dim, num_heads) for fc_dim in fc_dims]
        )
        self._output_dim = dim

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        selsa = cfg.MODEL.SELSA
        return {
            "input_shape": input_shape,
            "fc_dims": [cfg.MODEL.ROI_BOX_HEAD.FC_DIM] * cfg.MODEL.ROI_BOX_HEAD.NUM_FC,
            "num_heads": selsa.NUM_HEADS if selsa.ENABLED else None,
            "norm": cfg.MODEL.ROI_BOX_HEAD.NORM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=self._output_dim)

    @property
    def aggregates(self) -> bool:
        """Whether the head uses reference RoIs at all."""
        return len(self.selsa) > 0

    def encode_references(self, box_features: Tensor) -> list[KeyValue]:
        """
        Args:
            box_features: (M, C, H, W) RoI features of reference frames.

        Returns:
            Keys and values for each SELSA block.
        """
        x = box_features.flatten(1)
        encoded = []
        for index, (fc, block) in enumerate(zip(self.fcs, self.selsa, strict=True)):
            if index:
                x = F.relu(x)
            x = self.norms[index](fc(x))
            encoded.append(block.encode_references(x))
        return encoded

    def forward(
        self,
        box_features: Tensor,
        references: Sequence[KeyValue] | None = None,
        log_counts: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            box_features: (R, C, H, W) RoI features of one key frame.
            references: what :meth:`encode_references` gave for the key frame's M reference RoIs;
                None if the head has no SELSA blocks.
            log_counts: (M,), see :meth:`SELSABlock.forward`.

        Returns:
            (R, fc_dims[-1]).
        """
        x = box_features.flatten(1)
        for index, fc in enumerate(self.fcs):
            x = self.norms[index](fc(x))
            if self.aggregates:
                if references is None:
                    raise ValueError("a box head with SELSA blocks needs reference RoIs")
                x = x + self.selsa[index](x, references[index], log_counts)
            x = F.relu(x)
        return x


def log_counts_of(counts: Sequence[int], lengths: Sequence[int], like: Tensor) -> Tensor | None:
    """Per-item logarithm of repeat counts, or None where no item repeats more than the others.

    Equal counts cancel in a softmax, so they need no bias.

    Args:
        counts: how often each frame counts.
        lengths: how many items (RoIs) each frame has.
        like: tensor whose device and dtype the result takes.

    Returns:
        (sum(lengths),) or None.
    """
    if len(set(counts)) <= 1:
        return None
    logs = [math.log(count) for count in counts]
    return torch.repeat_interleave(
        torch.tensor(logs, device=like.device, dtype=like.dtype),
        torch.tensor(list(lengths), device=like.device),
    )
