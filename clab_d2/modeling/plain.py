"""The temporal detector the plain way: every formula as it stands, everything recomputed at every
key frame, as the official code does. Kept for tests and the benchmark, which measure the fast way
against it; nothing else uses it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Instances
from torch import Tensor

from clab_d2.layers.most_similar import NORM_EPS
from clab_d2.layers.roi_pooling import FastROIPooler
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.rpn import TemporalRPN
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
        values, positions = (unit_bins @ unit_rows.T).topk(module.num_most_similar, dim=1)
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


class PlainTemporalRoIAlign(TemporalRoIAlign):
    """:class:`TemporalRoIAlign` by :func:`plain_temporal_roi_align`."""

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
        return plain_temporal_roi_align(self, roi_features, repeated)


class PlainROIPooler(FastROIPooler):
    """torchvision's RoIAlign on every device."""

    forward = ROIPooler.forward


class PlainTemporalRPN(TemporalRPN):
    """Keeps the graph of reference frames' proposals, which nothing uses."""

    propose = inspect.unwrap(TemporalRPN.propose)


class PlainTemporalRCNN(TemporalRCNN):
    """:class:`TemporalRCNN` without a memory: each clip comes with all its reference images."""

    def inference(
        self, clips: list[dict[str, Any]], postprocess: bool = True
    ) -> list[dict[str, Instances]]:
        """See :meth:`TemporalRCNN.inference`."""
        results = []
        for clip in clips:
            self.memory.clear()
            results += super().inference([clip], postprocess)
        return results


def make_plain(model: TemporalRCNN) -> TemporalRCNN:
    """Make a detector work the plain way, in place; its weights stay.

    Args:
        model: a detector as it is built from a config.
    """
    model.__class__ = PlainTemporalRCNN
    model.roi_heads.pooler.__class__ = PlainROIPooler
    model.proposal_generator.__class__ = PlainTemporalRPN
    if model.roi_heads.temporal_roi_align is not None:
        model.roi_heads.temporal_roi_align.__class__ = PlainTemporalRoIAlign
    return model
