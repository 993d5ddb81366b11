"""For each RoI bin, the positions of reference feature maps that are most similar to it.

The plain way multiplies every bin with every reference position: 270 G multiply-adds a key frame
(docs/method.md, 'Where the time goes', b), and as many similarities in memory. All backends keep
only the K best of each bin, and most need far fewer products: see
:func:`clab_d2.layers.most_similar.common.search_by_tiles`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clab_d2.layers.most_similar import numba, pytorch, triton
from clab_d2.layers.most_similar.common import NORM_EPS, MostSimilar, normalized_rows
from clab_d2.layers.most_similar.pytorch import cosines_at
from clab_d2.layers.roi_pooling.pytorch import BinInterpolation

__all__ = ["NORM_EPS", "MostSimilar", "cosines_at", "find_most_similar", "normalized_rows"]


@torch.no_grad()
def find_most_similar(
    bins: Tensor,
    key_rows: Tensor,
    interpolation: BinInterpolation,
    references: Sequence[Tensor],
    k: int,
    unit_rows: Sequence[Tensor] | None = None,
) -> list[MostSimilar]:
    """The K positions of each reference map whose cosine with a bin is greatest.

    Args:
        bins: (N, C) features of the RoI bins, equal to ``interpolation.of(key_rows)``.
        key_rows: (h * w, C) the key frame's feature map, position by position.
        interpolation: the bins as weighted sums of these rows.
        references: T maps (P_t, C), position by position.
        k: how many positions to take of each map; all, where it has fewer.
        unit_rows: the maps normalised (:func:`normalized_rows`), where a caller keeps them.

    Returns:
        For each map, (N, min(k, P_t)) positions and cosines, best first; without gradients.
    """
    found = triton.try_search(bins, key_rows, interpolation, references, k)
    if found is not None:
        return found
    backend = numba if numba.is_available(bins, key_rows, interpolation.weights) else pytorch
    return backend.search(bins, key_rows, interpolation, references, k, unit_rows)
