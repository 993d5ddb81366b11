"""Operations on boxes in operators that graphs have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms


def apply_deltas(
    deltas: Tensor, boxes: Tensor, weights: Sequence[float], scale_clamp: float
) -> Tensor:
    """Boxes moved and scaled: Detectron2's ``Box2BoxTransform.apply_deltas``, which is compiled by
    torch.jit and so can't be traced.

    Args:
        deltas: (N, 4 * K).
        boxes: (N, 4), xyxy.
        weights: of dx, dy, dw, dh.
        scale_clamp: greatest logarithm of a change of size.

    Returns:
        (N, 4 * K).
    """
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = boxes[:, None, :2] + 0.5 * size
    by_class = deltas.view(len(deltas), -1, 4)
    centre = by_class[..., :2] / deltas.new_tensor(weights[:2]) * size + centre
    scale = (by_class[..., 2:] / deltas.new_tensor(weights[2:])).clamp(max=scale_clamp)
    half = 0.5 * (scale.exp() * size)
    return torch.cat([centre - half, centre + half], dim=2).flatten(1)


def clip_boxes(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Boxes (..., 4) within an image of (height, width)."""
    limit = image_size.flip(0).repeat(2)
    return torch.minimum(boxes.clamp(min=0), limit)


def apply_linear_deltas(deltas: Tensor, boxes: Tensor, normalize_by_size: bool) -> Tensor:
    """Distances from the middles of boxes to the four sides: Detectron2's
    ``Box2BoxTransformLinear.apply_deltas``, for the same reason.

    Args:
        deltas: (N, 4).
        boxes: (N, 4), xyxy.
        normalize_by_size: whether distances are counted in widths and heights of the boxes.

    Returns:
        (N, 4).
    """
    centre = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    distances = deltas.relu()
    if normalize_by_size:
        distances = distances * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return torch.cat([centre - distances[:, :2], centre + distances[:, 2:]], dim=1)


def not_repeated(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression of boxes (N, 4) that are in order, best first: (N,) bool."""
    # Whole numbers that fall are their scores, of which no two are alike.
    ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    kept = nms(boxes, ranks, iou_threshold)
    return torch.zeros_like(ranks).index_fill(0, kept, 1.0) > 0
