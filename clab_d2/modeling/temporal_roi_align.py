"""Temporal RoI Align: RoI features of the key frame gather what is most similar in other frames.

Source: "Temporal ROI Align for Video Object Recognition" (AAAI 2021), with the constants of
MMTracking's release.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clab_d2.modeling.most_similar import (
    bin_interpolation,
    cosines_at,
    find_most_similar,
    unit_rows,
)


class TemporalRoIAlign(nn.Module):
    """Aggregates RoI features over the key frame and its reference frames.

    1. In every reference map, each RoI bin's K most similar positions (by cosine) are found; a
       softmax over their K cosines weights the sum of their features.
    2. The bin's own and gathered features are weighted by attention between embeddings (a 3x3
       conv on the RoI features), per bin and head, and summed. Without heads: the plain mean.
    """

    def __init__(self, channels: int, num_most_similar: int = 2, num_heads: int = 4) -> None:
        """
        Args:
            channels: channels C of the feature maps.
            num_most_similar: K.
            num_heads: attention heads, dividing C; 0 for the mean over frames.
        """
        super().__init__()
        if num_heads and channels % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide {channels} channels")
        if num_most_similar < 1:
            raise ValueError("Temporal RoI Align needs at least one most similar position")
        self.num_most_similar = num_most_similar
        self.num_heads = num_heads
        self.embed = nn.Conv2d(channels, channels, 3, padding=1) if num_heads else None

    def forward(
        self,
        roi_features: Tensor,
        boxes: Tensor,
        feature: Tensor,
        references: Sequence[Tensor],
        counts: Sequence[int],
        *,
        scale: float,
        sampling_ratio: int,
    ) -> Tensor:
        """
        Args:
            roi_features: (R, C, S, S), plain RoIAlign of ``feature`` at ``boxes``.
            boxes: (R, 4) xyxy in the key frame's image coordinates.
            feature: (C, h, w) feature map of the key frame.
            references: T feature maps (C, h_t, w_t).
            counts: how often each reference counts (a frame that is drawn twice counts twice).
            scale: feature pixels per image pixel.
            sampling_ratio: RoIAlign's, positive.

        Returns:
            (R, C, S, S).
        """
        if len(roi_features) == 0 or not references:
            return roi_features
        gathered = self._gather(
            roi_features, boxes, feature, references, scale=scale, sampling_ratio=sampling_ratio
        )
        if self.embed is None:
            return self._mean(roi_features, gathered, counts)
        return self._attend(roi_features, gathered, counts)

    def _gather(
        self,
        roi_features: Tensor,
        boxes: Tensor,
        feature: Tensor,
        references: Sequence[Tensor],
        *,
        scale: float,
        sampling_ratio: int,
    ) -> Tensor:
        """Most similar features of every bin in every reference, (T, R * S * S, C)."""
        size = roi_features.shape[-1]
        bins = roi_features.flatten(2).transpose(1, 2).flatten(0, 1)
        interpolation = bin_interpolation(
            boxes.to(feature.dtype), size, scale, sampling_ratio, *feature.shape[-2:]
        )
        key_rows = feature.flatten(1).T.contiguous()
        bin_norms = bins.detach().norm(dim=1)
        gathered = []
        for reference in references:
            rows = reference.flatten(1).T.contiguous()
            similar = find_most_similar(
                key_rows.detach(),
                interpolation,
                bin_norms,
                unit_rows(rows.detach()),
                min(self.num_most_similar, len(rows)),
            )
            if torch.is_grad_enabled():
                cosines = cosines_at(bins, rows, similar.positions)
            else:
                cosines = similar.cosines
            gathered.append(
                F.embedding_bag(
                    similar.positions,
                    rows,
                    per_sample_weights=cosines.softmax(dim=1),
                    mode="sum",
                )
            )
        return torch.stack(gathered)

    @staticmethod
    def _mean(roi_features: Tensor, gathered: Tensor, counts: Sequence[int]) -> Tensor:
        weights = gathered.new_tensor(counts)
        total = torch.einsum("tnc,t->nc", gathered, weights)
        num_rois, channels, size, _ = roi_features.shape
        total = total.view(num_rois, size, size, channels).permute(0, 3, 1, 2)
        return (roi_features + total) / (1 + sum(counts))

    def _attend(self, roi_features: Tensor, gathered: Tensor, counts: Sequence[int]) -> Tensor:
        assert self.embed is not None
        num_rois, channels, size, _ = roi_features.shape
        num_frames = len(gathered) + 1
        gathered = gathered.view(-1, num_rois, size, size, channels).permute(0, 1, 4, 2, 3)
        frames = torch.cat([roi_features[None], gathered])
        embeddings = self.embed(frames.flatten(0, 1)).view(
            num_frames, num_rois, self.num_heads, -1, size, size
        )
        logits = (embeddings * embeddings[:1]).sum(dim=3) / math.sqrt(channels / self.num_heads)
        logs = logits.new_tensor([0.0] + [math.log(count) for count in counts])
        weights = (logits + logs.view(-1, 1, 1, 1, 1)).softmax(dim=0)
        frames = frames.view(num_frames, num_rois, self.num_heads, -1, size, size)
        return (frames * weights[:, :, :, None]).sum(dim=0).flatten(1, 2)
