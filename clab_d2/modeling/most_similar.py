"""For each RoI bin, the positions of a reference feature map that are most similar to it.

The plain way multiplies every bin with every reference position: 270 G multiply-adds a key frame
(docs/method.md, 'Where the time goes', b). RoIAlign is linear in the feature map, so a bin's
products with all reference positions are the RoIAlign of the key map's correlation with them: one
smaller matrix product, then a weighted sum of a few of its rows for each bin. Correlation and
search go tile by tile over the reference positions, so no similarity matrix longer than one tile
exists.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clab_d2.modeling import cpu_kernels

# Added to norms before dividing, as the release does.
NORM_EPS = 1e-10
# Reference positions searched at a time: large enough for an efficient product, small enough for
# the tile's similarities to stay in cache.
TILE = 512


def weighted_rows(table: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: (P, D) table, (N, S) positions and weights -> (N, D)."""
    return F.embedding_bag(
        positions, table, per_sample_weights=weights.to(table.dtype), mode="sum"
    )


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


class MostSimilar(NamedTuple):
    """The K most similar reference positions of each bin, best first.

    Attributes:
        positions: (N, K) indices into the flattened reference map.
        cosines: (N, K) cosine similarities.
    """

    positions: Tensor
    cosines: Tensor


def _axis_interpolation(
    start: Tensor, length: Tensor, output_size: int, sampling_ratio: int, size: int
) -> tuple[Tensor, Tensor]:
    """Indices and weights along one axis, (R, output_size, 2 * sampling_ratio) each."""
    steps = torch.arange(output_size * sampling_ratio, device=start.device, dtype=start.dtype)
    bin_length = length[:, None] / output_size
    sample = start[:, None] + (steps + 0.5) * bin_length / sampling_ratio
    inside = (sample >= -1.0) & (sample <= size)
    sample = sample.clamp(min=0.0)
    low = sample.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    # At the far border both corners are the last row or column.
    fraction = torch.where(low >= size - 1, torch.zeros_like(sample), sample - low)
    scale = inside.to(start.dtype) / sampling_ratio
    indices = torch.stack([low, high], dim=-1)
    weights = torch.stack([(1.0 - fraction) * scale, fraction * scale], dim=-1)
    shape = (len(start), output_size, 2 * sampling_ratio)
    return indices.reshape(shape), weights.reshape(shape)


def bin_interpolation(
    boxes: Tensor, output_size: int, scale: float, sampling_ratio: int, height: int, width: int
) -> BinInterpolation:
    """RoIAlign ("aligned", half-pixel) as a sparse matrix.

    Args:
        boxes: (R, 4) xyxy in image coordinates.
        output_size: bins along each side.
        scale: feature pixels per image pixel.
        sampling_ratio: samples along each side of a bin; must be positive.
        height, width: size of the feature map.

    Returns:
        N = R * output_size ** 2 bins, RoI by RoI, row by row.
    """
    if sampling_ratio <= 0:
        raise ValueError("the interpolation needs a positive sampling ratio")
    # Half precision cannot tell a pixel from the next at coordinates of hundreds.
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    corners = boxes * scale - 0.5
    sizes = (boxes[:, 2:] - boxes[:, :2]) * scale
    x, x_weight = _axis_interpolation(
        corners[:, 0], sizes[:, 0], output_size, sampling_ratio, width
    )
    y, y_weight = _axis_interpolation(
        corners[:, 1], sizes[:, 1], output_size, sampling_ratio, height
    )
    positions = y[:, :, None, :, None] * width + x[:, None, :, None, :]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    num_bins = len(boxes) * output_size**2
    samples = (2 * sampling_ratio) ** 2
    return BinInterpolation(
        positions.reshape(num_bins, samples), weights.reshape(num_bins, samples)
    )


class MostSimilarSearch:
    """Searches reference maps for what is most similar to the RoI bins of one key frame."""

    def __init__(
        self, key_rows: Tensor, interpolation: BinInterpolation, bin_norms: Tensor, k: int
    ) -> None:
        """
        Args:
            key_rows: (h * w, C) the key frame's feature map, position by position.
            interpolation: the N RoI bins as weighted sums of these rows.
            bin_norms: (N,) norms of the RoI bins, in single precision at least.
            k: how many positions to take of each map; all, where it has fewer.
        """
        self.key_rows = key_rows.contiguous()
        self.interpolation = interpolation
        self.bin_norms = bin_norms
        self.k = k
        self._lists: cpu_kernels.SampleLists | None = None
        if cpu_kernels.are_available(key_rows, interpolation.weights):
            self._lists = cpu_kernels.merge_samples(
                interpolation.positions, interpolation.weights.float()
            )

    @torch.no_grad()
    def in_map(self, reference_rows: Tensor, tile: int = TILE) -> MostSimilar:
        """Search one reference map.

        Args:
            reference_rows: (P, C) the map, position by position.
            tile: positions to correlate at a time.
        """
        k, num_bins = min(self.k, len(reference_rows)), len(self.bin_norms)
        norms = reference_rows.norm(dim=1, keepdim=True, dtype=self.bin_norms.dtype)
        unit_rows = (reference_rows / (norms + NORM_EPS)).to(self.key_rows.dtype)
        values = self.bin_norms.new_full((num_bins, k), -torch.inf)
        positions = torch.zeros(num_bins, k, dtype=torch.long, device=values.device)
        for start in range(0, len(unit_rows), tile):
            correlation = self.key_rows @ unit_rows[start : start + tile].T
            if self._lists is not None:
                cpu_kernels.search(correlation.float(), self._lists, start, values, positions)
            else:
                values, positions = self._merge(correlation, start, values, positions)
        return MostSimilar(positions, values / (self.bin_norms[:, None] + NORM_EPS))

    def _merge(
        self, correlation: Tensor, start: int, values: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What :func:`cpu_kernels.search` does, in PyTorch's operators."""
        k = values.shape[1]
        similarity = self.interpolation.of(correlation)
        found, at = similarity.topk(min(k, similarity.shape[1]), dim=1)
        values, order = torch.cat([values, found.to(values.dtype)], dim=1).topk(k, dim=1)
        return values, torch.cat([positions, at + start], dim=1).gather(1, order)


def map_rows(feature: Tensor) -> Tensor:
    """(C, h, w) -> (h * w, C), contiguous; free for maps in channels-last memory format."""
    return feature.flatten(1).T.contiguous()


def cosines_at(bins: Tensor, reference_rows: Tensor, positions: Tensor) -> Tensor:
    """Cosines of bins with chosen reference positions, with gradients to both.

    The search itself gives no gradient; only the chosen positions' cosines need one.

    Args:
        bins: (N, C).
        reference_rows: (P, C), not normalised.
        positions: (N, K).

    Returns:
        (N, K).
    """
    chosen = reference_rows[positions]
    products = torch.einsum("nc,nkc->nk", bins, chosen)
    bin_norms = bins.norm(dim=1, keepdim=True) + NORM_EPS
    return products / bin_norms / (reference_rows.norm(dim=1)[positions] + NORM_EPS)
