"""Temporal RoI Align: RoI features of the key frame gather what is most similar in other frames.

Source: "Temporal ROI Align for Video Object Recognition" (AAAI 2021), with the constants of
MMTracking's release.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.layers.frame_attention import (
    EmbeddedMaps,
    FrameEmbedding,
    FrameRows,
    attend_over_frames,
    attend_to_embedded_maps,
    embed_map,
    mean_over_frames,
)
from clab_d2.layers.most_similar import (
    MostSimilar,
    cosines_at,
    find_most_similar,
    normalized_rows,
)
from clab_d2.layers.roi_pooling import BinInterpolation, bin_interpolation
from clab_d2.layers.rows import map_rows, weighted_rows
from clab_d2.modeling.aggregation.base import ROI_AGGREGATION_REGISTRY, RoIAggregation
from clab_d2.modeling.export.temporal_roi_align import ExportedTemporalRoIAlign

# Embedded maps of all references may take so much memory; else the embeddings go RoI by RoI.
EMBEDDED_BYTES = 3 * 2**29


@dataclass
class EncodedMap:
    """What depends on a frame's map alone.

    Attributes:
        unit_rows: (P, C) its positions, normalised.
        embedded: (P, 9, C), see :func:`clab_d2.layers.frame_attention.embed_map`; made when it is
            first needed.
    """

    unit_rows: Tensor
    embedded: Tensor | None = None


@ROI_AGGREGATION_REGISTRY.register()
class TemporalRoIAlign(RoIAggregation):
    """Aggregates RoI features over the key frame and its reference frames.

    1. In every reference map, each RoI bin's K most similar positions (by cosine) are found; a
       softmax over their K cosines weights the sum of their features.
    2. The bin's own and gathered features are weighted by attention between embeddings (a 3x3
       conv on the RoI features), per bin and head, and summed. Without heads: the plain mean.

    Started as the identity, the result is ``own + gate * (sum - own)`` with a learned scalar
    ``gate``, 0 to begin with.
    """

    @configurable
    def __init__(self, channels: int, num_most_similar: int = 2, num_heads: int = 4) -> None:
        """
        Args:
            channels: channels C of the feature maps.
            num_most_similar: K.
            num_heads: attention heads, dividing C; 0 for the mean over frames.
        """
        super().__init__()
        if num_heads and channels % num_heads:
            raise ConfigError(
                f"MODEL.TEMPORAL_ROI_ALIGN.NUM_HEADS {num_heads} does not divide the {channels} "
                "channels of the feature maps; change one of them"
            )
        if num_most_similar < 1:
            raise ConfigError(
                f"MODEL.TEMPORAL_ROI_ALIGN.NUM_MOST_SIMILAR is {num_most_similar}; it must be at "
                "least 1"
            )
        self.num_most_similar = num_most_similar
        self.num_heads = num_heads
        self.embed = nn.Conv2d(channels, channels, 3, padding=1) if num_heads else None
        self.gate: nn.Parameter | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, channels: int) -> dict[str, Any]:
        if cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE != "ROIAlignV2":
            raise ConfigError("Temporal RoI Align needs MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignV2")
        return {
            "channels": channels,
            "num_most_similar": cfg.MODEL.TEMPORAL_ROI_ALIGN.NUM_MOST_SIMILAR,
            "num_heads": cfg.MODEL.TEMPORAL_ROI_ALIGN.NUM_HEADS,
        }

    def start_as_identity(self) -> None:
        """A gate at 0; it gets a gradient at once, the embedding once it has moved."""
        self.gate = nn.Parameter(torch.zeros(()))

    def gated(self, roi_features: Tensor, aggregated: Tensor) -> Tensor:
        """What the method gives: of both (R, C, S, S), the latter as far as the gate is open."""
        if self.gate is None:
            return aggregated
        return roi_features + self.gate.to(aggregated.dtype) * (aggregated - roi_features)

    def encode_map(self, feature: Tensor) -> EncodedMap | None:
        """See :meth:`RoIAggregation.encode_map`; nothing on a GPU, where its kernels take the maps
        as they are."""
        return None if feature.is_cuda else EncodedMap(normalized_rows(map_rows(feature)))

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
        cat: Callable[[Sequence[Tensor]], Tensor] = torch.cat,
        encoded: Sequence[EncodedMap] | None = None,
    ) -> Tensor:
        """
        Args:
            roi_features: (R, C, S, S), plain RoIAlign of ``feature`` at ``boxes``.
            boxes: (R, 4) xyxy in the key frame's image coordinates.
            feature: (C, h, w) feature map of the key frame.
            references: T feature maps (C, h_t, w_t).
            counts: how often each reference counts (a frame that is drawn twice counts twice).
            scale: feature pixels per image pixel.
            sampling_ratio: RoIAlign's; 0 for as many samples as a bin has pixels.
            cat: joins the references' maps, each as (h_t * w_t, C).
            encoded: what :meth:`encode_map` gave for each reference; None to make it here, as far
                as that is worth it for this one call.

        Returns:
            (R, C, S, S).
        """
        if len(roi_features) == 0 or not references:
            return roi_features
        rows = [map_rows(reference) for reference in references]
        bins = roi_features.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()
        similar = self.search(
            bins, boxes, feature, rows, encoded, scale=scale, sampling_ratio=sampling_ratio
        )
        if torch.is_grad_enabled():
            result = self._aggregate_with_gradients(roi_features, bins, rows, similar, counts)
            return self.gated(roi_features, result)
        features = roi_features.permute(0, 2, 3, 1)
        frame_rows = self._rows_of(cat(rows), [len(part) for part in rows], similar, counts)
        if encoded is not None and self._embeds_maps(bins, rows):
            interpolation = self._interpolation(bins, boxes, feature, scale, sampling_ratio)
            maps = self.embed_maps(feature, references, encoded, interpolation)
            result = self.aggregate_embedded(features, frame_rows, maps)
        else:
            result = self.aggregate(features, frame_rows)
        return self.gated(roi_features, result.permute(0, 3, 1, 2))

    def for_export(self) -> ExportedTemporalRoIAlign:
        """See :meth:`RoIAggregation.for_export`."""
        return ExportedTemporalRoIAlign(
            self.embed, self.gate, self.num_most_similar, self.num_heads
        )

    def search(
        self,
        bins: Tensor,
        boxes: Tensor,
        feature: Tensor,
        references: Sequence[Tensor],
        encoded: Sequence[EncodedMap] | None = None,
        *,
        scale: float,
        sampling_ratio: int,
    ) -> list[MostSimilar]:
        """Most similar positions of every bin in every reference, without gradients."""
        return find_most_similar(
            bins,
            map_rows(feature),
            self._interpolation(bins, boxes, feature, scale, sampling_ratio),
            references,
            self.num_most_similar,
            None if encoded is None else [one.unit_rows for one in encoded],
        )

    @staticmethod
    def _interpolation(
        bins: Tensor, boxes: Tensor, feature: Tensor, scale: float, sampling_ratio: int
    ) -> BinInterpolation:
        """The bins (R * S * S, C) of R boxes as weighted sums of the map's positions."""
        return bin_interpolation(
            boxes.to(torch.promote_types(boxes.dtype, feature.dtype)),
            math.isqrt(len(bins) // len(boxes)),
            scale,
            sampling_ratio,
            *feature.shape[-2:],
        )

    def _aggregate_with_gradients(
        self,
        roi_features: Tensor,
        bins: Tensor,
        references: Sequence[Tensor],
        similar: Sequence[MostSimilar],
        counts: Sequence[int],
    ) -> Tensor:
        """The formula as it stands: few references, and a graph to keep small.

        Args:
            roi_features: (R, C, S, S).
            bins: the same, (N, C) with N = R * S * S.
            references: T maps, (P_t, C).
            similar: most similar positions, for each map.
            counts: how often each map counts.
        """
        num_rois, channels, size, _ = roi_features.shape
        gathered = self.gather(bins, references, similar)
        gathered = gathered.view(-1, num_rois, size, size, channels).permute(0, 1, 4, 2, 3)
        if self.embed is None:
            shares = gathered.new_tensor(counts) / (1 + sum(counts))
            return roi_features / (1 + sum(counts)) + torch.einsum(
                "trcyx,t->rcyx", gathered, shares
            )
        frames = torch.cat([roi_features[None], gathered])
        weights = self.frame_weights(frames, counts).to(frames.dtype)
        shape = (len(frames), num_rois, self.num_heads, -1, size, size)
        return (frames.view(shape) * weights[:, :, :, None]).sum(dim=0).flatten(1, 2)

    def gather(
        self, bins: Tensor, references: Sequence[Tensor], similar: Sequence[MostSimilar]
    ) -> Tensor:
        """What each bin gathers from each reference map: its most similar positions' features,
        weighted by a softmax over their cosines.

        Args:
            bins: (N, C).
            references: T maps, (P_t, C).
            similar: most similar positions, for each map.

        Returns:
            (T, N, C).
        """
        # Half precision is too narrow and too coarse for cosines, logits and sums over frames.
        precise = torch.promote_types(bins.dtype, torch.float32)
        bins = bins.to(precise)
        return torch.stack(
            [
                weighted_rows(
                    rows, found.positions, cosines_at(bins, rows, found.positions).softmax(dim=1)
                )
                for rows, found in zip(references, similar, strict=True)
            ]
        )

    def frame_weights(self, frames: Tensor, counts: Sequence[int]) -> Tensor:
        """The attention over frames, for each bin and head; without heads, their plain shares.

        Args:
            frames: (1 + T, R, C, S, S) own RoI features, then what was gathered of each reference.
            counts: how often each reference counts.

        Returns:
            (1 + T, R, heads or 1, S, S), in single precision at least; they sum to 1 over frames.
        """
        count, num_rois, channels, size, _ = frames.shape
        precise = torch.promote_types(frames.dtype, torch.float32)
        logs = frames.new_tensor([0.0] + [math.log(count) for count in counts], dtype=precise)
        if self.embed is None:
            return logs.view(-1, 1, 1, 1, 1).softmax(dim=0).expand(-1, num_rois, 1, size, size)
        shape = (count, num_rois, self.num_heads, -1, size, size)
        embeddings = self.embed(frames.flatten(0, 1)).view(shape).to(precise)
        logits = (embeddings * embeddings[:1]).sum(dim=3) / math.sqrt(channels / self.num_heads)
        return (logits + logs.view(-1, 1, 1, 1, 1)).softmax(dim=0)

    def _embeds_maps(self, bins: Tensor, references: Sequence[Tensor]) -> bool:
        """Whether whole maps (P_t, C) are embedded for N bins (N, C), rather than the bins."""
        positions = sum(len(rows) for rows in references)
        return (
            self.embed is not None
            and not bins.is_cuda
            and len(bins) * len(references) >= positions
            and 9 * 4 * bins.shape[1] * positions <= EMBEDDED_BYTES
        )

    def embed_maps(
        self,
        feature: Tensor,
        references: Sequence[Tensor],
        encoded: Sequence[EncodedMap],
        interpolation: BinInterpolation,
    ) -> EmbeddedMaps:
        """Embed those maps that are not embedded yet: at most once for each frame of a video.

        Args:
            feature: (C, h, w) map of the key frame.
            references: T maps (C, h_t, w_t).
            encoded: of each of them; what is made is kept there.
            interpolation: the key frame's RoI bins as weighted sums of its positions.
        """
        assert self.embed is not None
        own = None
        for reference, kept in zip(references, encoded, strict=True):
            if kept.embedded is None:
                kept.embedded = embed_map(map_rows(reference), self.embed.weight)
            # The key frame is one of its references, as a rule.
            if reference.data_ptr() == feature.data_ptr() and reference.shape == feature.shape:
                own = kept.embedded
        if own is None:
            own = embed_map(map_rows(feature), self.embed.weight)
        kept_maps = [kept.embedded for kept in encoded if kept.embedded is not None]
        return EmbeddedMaps(own, interpolation, kept_maps, self.embed.bias, self.num_heads)

    def aggregate_embedded(
        self, features: Tensor, rows: FrameRows, maps: EmbeddedMaps
    ) -> Tensor:
        """:meth:`aggregate` by embedded maps: see :mod:`clab_d2.layers.frame_attention`."""
        return attend_to_embedded_maps(features, rows, maps)

    def aggregate(self, features: Tensor, rows: FrameRows) -> Tensor:
        """Attention over frames without gradients: see :mod:`clab_d2.layers.frame_attention`.

        Args:
            features: (R, S, S, C) RoI features of the key frame.
            rows: what their bins gather from the references.

        Returns:
            (R, S, S, C).
        """
        if self.embed is None:
            return mean_over_frames(features, rows)
        maps = features.permute(0, 3, 1, 2)
        # RoIs are small maps, for which a CPU's convs are faster in the plain layout.
        maps = maps if maps.is_cuda else maps.contiguous()
        embedding = FrameEmbedding(
            self.embed(maps).permute(0, 2, 3, 1),
            self.embed.weight,
            self.embed.bias,
            self.num_heads,
        )
        return attend_over_frames(features, rows, embedding)

    def _rows_of(
        self,
        table: Tensor,
        lengths: Sequence[int],
        similar: Sequence[MostSimilar],
        counts: Sequence[int],
    ) -> FrameRows:
        """The most similar positions as rows of one table, weighted by a softmax over cosines.

        Args:
            table: (P, C) all maps, one after the other.
            lengths: of the maps.
            similar: most similar positions, for each map.
            counts: how often each map counts.
        """
        starts = itertools.accumulate(lengths[:-1], initial=0)
        # Maps smaller than K positions offer fewer; they repeat one with no weight.
        positions = torch.stack(
            [
                F.pad(found.positions, (0, self.num_most_similar - found.positions.shape[1]))
                + start
                for found, start in zip(similar, starts, strict=True)
            ],
            dim=1,
        )
        weights = torch.stack(
            [
                F.pad(
                    found.cosines.softmax(dim=1),
                    (0, self.num_most_similar - found.cosines.shape[1]),
                )
                for found in similar
            ],
            dim=1,
        )
        return FrameRows(table, positions, weights, counts)
