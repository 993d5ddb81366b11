"""The temporal detector the plain way: every formula as it stands, everything recomputed at every
key frame. (The official code keeps the references' maps and recomputes the rest.) Kept for tests
and the benchmark, which measure the fast way against it; nothing else uses it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_model
from detectron2.structures import Instances
from torch import Tensor

from clab_d2.layers.most_similar import NORM_EPS
from clab_d2.modeling.aggregation.base import ROI_AGGREGATION_REGISTRY
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.roi_heads.temporal_roi_heads import TemporalROIHeads
from clab_d2.modeling.temporal_dense import TemporalDense
from clab_d2.modeling.temporal_detector import TemporalDetector
from clab_d2.modeling.temporal_rcnn import TemporalRCNN


def plain_temporal_roi_align(
    module: TemporalRoIAlign, roi_features: Tensor, references: Sequence[Tensor]
) -> Tensor:
    """Temporal RoI Align as its paper states it, every product written out.

    Args:
        module: whose K, heads and embedding are used.
        roi_features: (R, C, S, S), plain RoIAlign of the key frame.
        references: T feature maps (C, h_t, w_t), repeats included.

    Returns:
        (R, C, S, S).
    """
    num_rois, channels, size, _ = roi_features.shape
    bins = roi_features.flatten(2).transpose(1, 2).flatten(0, 1)
    unit_bins = bins / (bins.norm(dim=1, keepdim=True) + NORM_EPS)
    frames = [roi_features]
    for reference in references:
        rows = reference.flatten(1).T
        unit_rows = rows / (rows.norm(dim=1, keepdim=True) + NORM_EPS)
        values, positions = (unit_bins @ unit_rows.T).topk(
            min(module.num_most_similar, len(rows)), dim=1
        )
        gathered = (values.softmax(dim=1)[..., None] * rows[positions]).sum(dim=1)
        frames.append(gathered.view(num_rois, size, size, channels).permute(0, 3, 1, 2))
    stacked = torch.stack(frames)
    if module.embed is None:
        return stacked.mean(dim=0)
    shape = (len(frames), num_rois, module.num_heads, -1, size, size)
    embedded = module.embed(stacked.flatten(0, 1)).view(shape)
    logits = (embedded * embedded[:1]).sum(dim=3, keepdim=True)
    weights = (logits / math.sqrt(channels / module.num_heads)).softmax(dim=0)
    return (weights * stacked.view(shape)).sum(dim=0).flatten(1, 2)


@ROI_AGGREGATION_REGISTRY.register()
class PlainTemporalRoIAlign(TemporalRoIAlign):
    """:class:`TemporalRoIAlign` by :func:`plain_temporal_roi_align`."""

    def encode_map(self, feature: Tensor) -> None:
        """Nothing is kept."""

    def forward(
        self,
        roi_features: Tensor,
        boxes: Tensor,
        feature: Tensor,
        references: Sequence[Tensor],
        counts: Sequence[int],
        **kwargs: object,
    ) -> Tensor:
        """See :meth:`TemporalRoIAlign.forward`."""
        repeated = [
            reference
            for reference, count in zip(references, counts, strict=True)
            for _ in range(count)
        ]
        return self.gated(roi_features, plain_temporal_roi_align(self, roi_features, repeated))


@ROI_HEADS_REGISTRY.register()
class PlainTemporalROIHeads(TemporalROIHeads):
    """:class:`TemporalROIHeads` with torchvision's RoIAlign on every device."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape)
        arguments["pooler"].backend = "torchvision"
        return arguments


class _WithoutMemory(TemporalDetector):
    """Each clip comes with all its reference images."""

    def inference(
        self, clips: list[dict[str, Any]], postprocess: bool = True
    ) -> list[dict[str, Instances]]:
        """See :meth:`TemporalDetector.inference`."""
        results = []
        for clip in clips:
            self.memory.clear()
            results += super().inference([clip], postprocess)
        return results


@META_ARCH_REGISTRY.register()
class PlainTemporalDense(_WithoutMemory, TemporalDense):
    """:class:`TemporalDense` without a memory."""


@META_ARCH_REGISTRY.register()
class PlainTemporalRCNN(_WithoutMemory, TemporalRCNN):
    """:class:`TemporalRCNN` without a memory."""

    # Without no_grad: keeps the graph of reference frames' proposals, which nothing uses.
    _propose = inspect.unwrap(TemporalRCNN._propose)


def build_plain(cfg: CfgNode) -> TemporalDetector:
    """Build the detector of a config so that it works the plain way.

    Its weights have the names of the detector's own, and are drawn in the same order.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = f"Plain{cfg.MODEL.META_ARCHITECTURE}"
    cfg.MODEL.ROI_HEADS.NAME = "PlainTemporalROIHeads"
    if cfg.MODEL.AGGREGATION.ROI_FEATURES == "TemporalRoIAlign":
        cfg.MODEL.AGGREGATION.ROI_FEATURES = "PlainTemporalRoIAlign"
    return build_model(cfg)
