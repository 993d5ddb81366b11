"""The search for most similar positions in PyTorch's operators, and cosines with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clab_d2.layers.most_similar.common import (
    NORM_EPS,
    TILE,
    MostSimilar,
    normalized_rows,
    search_by_tiles,
)
from clab_d2.layers.roi_pooling.pytorch import BinInterpolation


@torch.no_grad()
def search(
    bins: Tensor,
    key_rows: Tensor,
    interpolation: BinInterpolation,
    references: Sequence[Tensor],
    k: int,
    unit_rows: Sequence[Tensor] | None = None,
    *,
    tile: int = TILE,
) -> list[MostSimilar]:
    """See :func:`clab_d2.layers.most_similar.find_most_similar`.

    Args:
        tile: reference positions to correlate at a time.
    """

    def merge(
        correlation: Tensor, start: int, values: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        similarity = interpolation.of(correlation)
        found, at = similarity.topk(min(values.shape[1], similarity.shape[1]), dim=1)
        values, order = torch.cat([values, found.to(values.dtype)], dim=1).topk(
            values.shape[1], dim=1
        )
        return values, torch.cat([positions, at + start], dim=1).gather(1, order)

    if unit_rows is None:
        unit_rows = [normalized_rows(rows) for rows in references]
    return search_by_tiles(bins, key_rows, unit_rows, k, merge, tile)


def cosines_at(bins: Tensor, reference_rows: Tensor, positions: Tensor) -> Tensor:
    """Cosines of bins with chosen reference positions, with gradients to both.

    The search itself gives no gradient; only the chosen positions' cosines need one.

    Args:
        bins: (N, C).
        reference_rows: (P, C), not normalised.
        positions: (N, K).

    Returns:
        (N, K), in single precision at least.
    """
    precise = torch.promote_types(bins.dtype, torch.float32)
    # In half precision sums of squares overflow, and NORM_EPS is 0. Autocast would go back to it.
    with torch.autocast(bins.device.type, enabled=False):
        bins, chosen = bins.to(precise), reference_rows[positions].to(precise)
        products = torch.einsum("nc,nkc->nk", bins, chosen)
        reference_norms = reference_rows.norm(dim=1, dtype=precise)
        bin_divisors = _divisors(bins.norm(dim=1, keepdim=True))
        return products / bin_divisors / _divisors(reference_norms)[positions]


def _divisors(norms: Tensor) -> Tensor:
    """What normalises rows of these norms. Rows of zeros stay as they are, without a gradient: it
    would be 1 / NORM_EPS, beyond the range of fp16, where one infinity spoils a whole step."""
    return torch.where(norms > 0, norms + NORM_EPS, torch.inf)
