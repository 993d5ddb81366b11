"""The operators of clab_d2.layers written out, for their backends to be compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    """A feature map (C, h, w) between its positions; 0 beyond one position outside it."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return feature.new_zeros(len(feature))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    return (1 - down) * ((1 - along) * feature[:, top, left] + along * feature[:, top, right]) + (
        down * ((1 - along) * feature[:, bottom, left] + along * feature[:, bottom, right])
    )


def roi_align(
    feature: Tensor, boxes: Tensor, size: int, scale: float, sampling_ratio: int
) -> Tensor:
    """RoIAlign, half-pixel: (C, h, w) at boxes (R, 4) -> (R, C, size, size)."""
    output = feature.new_zeros(len(boxes), len(feature), size, size)
    for roi, (x0, y0, x1, y1) in enumerate(boxes.double().tolist()):
        step_y = (y1 - y0) * scale / size / sampling_ratio
        step_x = (x1 - x0) * scale / size / sampling_ratio
        for i in range(size):
            for j in range(size):
                samples = [
                    bilinear(
                        feature,
                        y0 * scale - 0.5 + (i * sampling_ratio + k + 0.5) * step_y,
                        x0 * scale - 0.5 + (j * sampling_ratio + m + 0.5) * step_x,
                    )
                    for k in range(sampling_ratio)
                    for m in range(sampling_ratio)
                ]
                output[roi, :, i, j] = torch.stack(samples).mean(dim=0)
    return output


def cosines(bins: Tensor, reference: Tensor) -> Tensor:
    """Of bins (N, C) with positions (P, C), in double precision: (N, P)."""
    bins, reference = bins.double(), reference.double()
    norms = (bins.norm(dim=1) + 1e-10)[:, None] * (reference.norm(dim=1) + 1e-10)
    return bins @ reference.T / norms


def gather(table: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Sums of K weighted rows: table (P, C), positions and weights (N, T, K) -> (N, T, C)."""
    return (weights[..., None] * table[positions]).sum(dim=2)


def attend_over_frames(
    features: Tensor,
    gathered: Tensor,
    counts: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
) -> Tensor:
    """Attention over frames, every frame embedded and repeated as often as it counts.

    Args:
        features: (R, S, S, C).
        gathered: (R * S * S, T, C).
        counts: how often each of T references counts.
        weight, bias: of the embedding, a 3x3 convolution.
        num_heads: heads.

    Returns:
        (R, S, S, C).
    """
    shape, channels = features.shape, features.shape[-1]
    frames = [features]
    for index, count in enumerate(counts):
        frames += [gathered[:, index].view(shape)] * count
    maps = torch.stack(frames).permute(0, 1, 4, 2, 3)  # (frames, R, C, S, S)
    embedded = F.conv2d(maps.flatten(0, 1), weight, bias, padding=1).view(maps.shape)
    by_head = embedded.unflatten(2, (num_heads, -1))
    logits = (by_head * by_head[:1]).sum(dim=3) / math.sqrt(channels / num_heads)
    weights = logits.softmax(dim=0)[:, :, :, None]
    total = (weights * maps.unflatten(2, (num_heads, -1))).sum(dim=0)
    return total.flatten(1, 2).permute(0, 2, 3, 1)


def mean_over_frames(features: Tensor, gathered: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean of features (R, S, S, C) and of T references' (R * S * S, T, C), by counts."""
    frames = [features]
    for index, count in enumerate(counts):
        frames += [gathered[:, index].view(features.shape)] * count
    return torch.stack(frames).mean(dim=0)
