"""RoIAlign as a sparse matrix: each bin is a weighted sum of a few rows of the feature map.

``embedding_bag`` computes such sums several times faster on a CPU than torchvision's RoIAlign,
forward and backward. Being linear, they also interpolate whatever was computed for each position
of the map, as the search for most similar positions does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clab_d2.layers.rows import map_rows, weighted_rows


class BinInterpolation(NamedTuple):
    """RoIAlign as a sparse matrix: bin = sum of weight * feature[position].

    Attributes:
        positions: (N, S) indices into the flattened (h * w) feature map, for N bins.
        weights: (N, S).
    """

    positions: Tensor
    weights: Tensor

    def of(self, table: Tensor) -> Tensor:
        """Interpolate the rows of ``table`` (h * w, D) -> (N, D)."""
        return weighted_rows(table, self.positions, self.weights)


def _axis_interpolation(
    start: Tensor, length: Tensor, output_size: int, sampling_ratio: int, size: int
) -> tuple[Tensor, Tensor]:
    """Indices and weights along one axis, (R, output_size, 2 * samples) each."""
    bin_length = length / output_size
    # By itself a sample for each pixel that a bin covers, and none in a bin without extent.
    counts = torch.full_like(start, sampling_ratio) if sampling_ratio else bin_length.ceil()
    most = sampling_ratio or _power_of_two(int(counts.max()) if len(counts) else 1)
    step = torch.arange(most, device=start.device, dtype=start.dtype)
    divisor = counts.clamp(min=1)[:, None, None]
    bins = torch.arange(output_size, device=start.device, dtype=start.dtype)[:, None]
    sample = start[:, None, None] + (bins + (step + 0.5) / divisor) * bin_length[:, None, None]
    # RoIs with fewer samples than the most have some without weight.
    inside = (sample >= -1.0) & (sample <= size) & (step < counts[:, None, None])
    sample = sample.clamp(min=0.0)
    low = sample.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    # At the far border both corners are the last row or column.
    fraction = torch.where(low >= size - 1, torch.zeros_like(sample), sample - low)
    scale = inside.to(start.dtype) / divisor
    indices = torch.stack([low, high], dim=-1)
    weights = torch.stack([(1.0 - fraction) * scale, fraction * scale], dim=-1)
    shape = (len(start), output_size, 2 * most)
    return indices.reshape(shape), weights.reshape(shape)


def _power_of_two(least: int) -> int:
    """The next one: kernels are compiled for each number of samples."""
    return 1 << max(least - 1, 0).bit_length()


def bin_interpolation(
    boxes: Tensor, output_size: int, scale: float, sampling_ratio: int, height: int, width: int
) -> BinInterpolation:
    """RoIAlign ("aligned", half-pixel) as a sparse matrix.

    Args:
        boxes: (R, 4) xyxy in image coordinates.
        output_size: bins along each side.
        scale: feature pixels per image pixel.
        sampling_ratio: samples along each side of a bin; 0 for as many as it has pixels, which
            Detectron2's pooler takes by default.
        height, width: size of the feature map.

    Returns:
        N = R * output_size ** 2 bins, RoI by RoI, row by row.
    """
    # Half precision cannot tell a pixel from the next at coordinates of hundreds.
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    corners = boxes * scale - 0.5
    sizes = corners[:, 2:] - corners[:, :2]  # rounded as torchvision's, which counts samples by it
    x, x_weight = _axis_interpolation(
        corners[:, 0], sizes[:, 0], output_size, sampling_ratio, width
    )
    y, y_weight = _axis_interpolation(
        corners[:, 1], sizes[:, 1], output_size, sampling_ratio, height
    )
    positions = y[:, :, None, :, None] * width + x[:, None, :, None, :]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    num_bins = len(boxes) * output_size**2
    samples = x.shape[-1] * y.shape[-1]
    return BinInterpolation(
        positions.reshape(num_bins, samples), weights.reshape(num_bins, samples)
    )


def roi_align(
    feature: Tensor, boxes: Tensor, output_size: int, scale: float, sampling_ratio: int
) -> Tensor:
    """RoIAlign of one map.

    Args:
        feature: (C, h, w).
        boxes: (R, 4) xyxy in image coordinates.
        output_size: bins along each side of a RoI.
        scale: feature pixels per image pixel.
        sampling_ratio: samples along each side of a bin; must be positive.

    Returns:
        (R, output_size, output_size, C), in the feature's type.
    """
    interpolation = bin_interpolation(
        boxes.to(torch.promote_types(boxes.dtype, feature.dtype)),
        output_size,
        scale,
        sampling_ratio,
        *feature.shape[-2:],
    )
    bins = interpolation.of(map_rows(feature))
    return bins.view(-1, output_size, output_size, len(feature))
