"""Temporal RoI Align in operators that graphs have.

The same sums as :class:`clab_d2.modeling.aggregation.temporal_roi_align.TemporalRoIAlign`: a matrix
product finds the most similar positions (there is no cheaper way with the operators of all
runtimes), and the attention over frames never embeds what is gathered (see
:mod:`clab_d2.layers.frame_attention`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clab_d2.layers.most_similar import NORM_EPS
from clab_d2.modeling.export.base import ExportedRoIAggregation

# Of similarities and queries, which go a few RoIs at a time; with so many references.
_CHUNK_BYTES = 128 * 2**20
_TYPICAL_REFERENCES = 16


class ExportedTemporalRoIAlign(ExportedRoIAggregation):
    """Gives RoIs features that take in the references' maps.

    What it takes of a reference, :meth:`of_reference` makes.
    """

    reference_names = ("rows", "norms")

    def __init__(
        self,
        embed: nn.Conv2d | None,
        gate: nn.Parameter | None,
        num_most_similar: int,
        num_heads: int,
    ) -> None:
        """Args: as the attributes of ``TemporalRoIAlign``."""
        super().__init__()
        self.embed = embed
        self.gate = gate
        self.num_most_similar = num_most_similar
        self.num_heads = num_heads

    @staticmethod
    def of_reference(feature: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            feature: (C, h, w), a frame's map.

        Returns:
            (h * w, C) rows of length 1, and (h * w,) what they were divided by.
        """
        rows = feature.flatten(1).T.contiguous()
        norms = rows.square().sum(dim=1).sqrt() + NORM_EPS
        return rows / norms[:, None], norms

    def forward(
        self, roi_features: Tensor, counts: Tensor, unit_rows: Tensor, norms: Tensor
    ) -> Tensor:
        """
        Args:
            roi_features: (R, C, S, S).
            counts: (T,), how often each reference counts.
            unit_rows: (T, P, C).
            norms: (T, P).

        Returns:
            (R, C, S, S).
        """
        num_rois, channels, size, _ = roi_features.shape
        positions = unit_rows.shape[1]
        per_bin = max(
            _TYPICAL_REFERENCES * (positions if isinstance(positions, int) else 2048),
            9 * self.num_heads * channels,
        )
        step = max(1, _CHUNK_BYTES // (4 * size * size * per_bin))
        aggregated = torch.cat(
            [
                self._aggregate(roi_features[start : start + step], counts, unit_rows, norms)
                for start in range(0, num_rois, step)
            ]
        )
        if self.gate is None:
            return aggregated
        return roi_features + self.gate * (aggregated - roi_features)

    def _aggregate(
        self, own: Tensor, counts: Tensor, unit_rows: Tensor, norms: Tensor
    ) -> Tensor:
        """:meth:`forward` for some RoIs, without the gate."""
        num_rois, channels, size, _ = own.shape
        bins = own.flatten(2).transpose(1, 2).reshape(-1, channels)
        gathered = self._gather(bins, unit_rows, norms)
        if self.embed is None:
            total = (gathered * counts[:, None]).sum(dim=1)
            result = (bins + total) / (1 + counts.sum())
        else:
            result = self._attend(own, bins, gathered, counts)
        return result.view(num_rois, size * size, channels).transpose(1, 2).reshape(own.shape)

    def _gather(self, bins: Tensor, unit_rows: Tensor, norms: Tensor) -> Tensor:
        """What N bins (N, C) gather from T references: (N, T, C)."""
        num_refs, positions, channels = unit_rows.shape
        unit_bins = bins / (bins.square().sum(dim=1, keepdim=True).sqrt() + NORM_EPS)
        # (T * P, C) x (C, N): one product for all references.
        products = unit_bins @ unit_rows.flatten(0, 1).T
        products = products.view(len(bins), num_refs, positions)
        values, found = products.topk(self.num_most_similar, dim=2)
        starts = torch.arange(num_refs, device=found.device) * positions
        rows = (found + starts[:, None]).flatten()
        weights = values.softmax(dim=2) * norms.flatten()[rows].view(values.shape)
        gathered = unit_rows.flatten(0, 1)[rows].view(*values.shape, channels)
        return (gathered * weights[..., None]).sum(dim=2)

    def _attend(self, own: Tensor, bins: Tensor, gathered: Tensor, counts: Tensor) -> Tensor:
        """Attention over the own and the gathered features.

        Args:
            own: (R, C, S, S).
            bins: the same, (N, C).
            gathered: (N, T, C).
            counts: (T,).

        Returns:
            (N, C).
        """
        assert self.embed is not None
        num_rois, channels, size, _ = own.shape
        heads, num_bins = self.num_heads, len(bins)
        per_head = channels // heads
        embedded = self.embed(own)
        by_head = embedded.permute(0, 2, 3, 1).reshape(num_rois, size, size, heads, per_head)
        padded = F.pad(by_head, (0, 0, 0, 0, 1, 1, 1, 1))
        offsets = [(dy, dx) for dy in range(3) for dx in range(3)]
        # At position s, offset d: the embedding of bin s - d, whose conv looks at s through W[d].
        looking = torch.stack(
            [padded[:, 2 - dy : 2 - dy + size, 2 - dx : 2 - dx + size] for dy, dx in offsets]
        )
        looking = looking.permute(0, 4, 1, 2, 3, 5).reshape(9 * heads, num_bins, per_head)
        kernel = self.embed.weight.view(heads, per_head, channels, 9)
        kernel = kernel.permute(3, 0, 1, 2).reshape(9 * heads, per_head, channels)
        queries = (looking @ kernel).permute(1, 2, 0)
        products = (gathered @ queries).view(num_rois, size, size, -1, 9, heads)
        padded = F.pad(products, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
        logits = sum(
            padded[:, dy : dy + size, dx : dx + size, :, index]
            for index, (dy, dx) in enumerate(offsets)
        )
        if self.embed.bias is not None:
            bias = self.embed.bias.view(heads, per_head)
            logits = logits + (by_head * bias).sum(dim=4)[..., None, :]
        own_logits = by_head.square().sum(dim=4)[..., None, :]
        logs = torch.cat([counts.new_zeros(1), counts.log()])
        logits = torch.cat([own_logits, logits], dim=3) / math.sqrt(per_head) + logs[:, None]
        weights = logits.softmax(dim=3).view(num_bins, -1, heads).transpose(1, 2)
        values = torch.cat([bins[:, None], gathered], dim=1)
        values = values.view(num_bins, -1, heads, per_head).transpose(1, 2)
        return (weights[:, :, None] @ values).flatten(1)
