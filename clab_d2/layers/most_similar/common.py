"""What the backends of the search for most similar positions give, and what two of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clab_d2.layers.matrix_product import row_products

# Added to norms before dividing, as the release does.
NORM_EPS = 1e-10
# Reference positions searched at a time: large enough for an efficient product, small enough for
# the tile's similarities to stay in cache.
TILE = 640


class MostSimilar(NamedTuple):
    """The K most similar reference positions of each of N bins, best first.

    Attributes:
        positions: (N, K) indices into the flattened reference map.
        cosines: (N, K) cosine similarities.
    """

    positions: Tensor
    cosines: Tensor


# (correlation of a tile (h * w, tile), its first position, greatest products so far (N, K), their
# positions (N, K)) -> the greatest products with those of the tile among them, their positions
Merge = Callable[[Tensor, int, Tensor, Tensor], tuple[Tensor, Tensor]]
# Calls a function for each map, and gives what it gives, in order
ForEach = Callable[[Callable[[Tensor], MostSimilar], Sequence[Tensor]], Iterable[MostSimilar]]


def normalized_rows(rows: Tensor) -> Tensor:
    """Rows (P, C) of norm 1, or 0; in their type, but the norms in single precision at least."""
    # In half precision sums of squares overflow and cosines hardly differ.
    norms = rows.norm(dim=1, keepdim=True, dtype=torch.promote_types(rows.dtype, torch.float32))
    return (rows / (norms + NORM_EPS)).to(rows.dtype)


def search_by_tiles(
    bins: Tensor,
    key_rows: Tensor,
    unit_rows: Sequence[Tensor],
    k: int,
    merge: Merge,
    tile: int,
    for_each: ForEach = map,
) -> list[MostSimilar]:
    """Search each reference map for what is most similar to the RoI bins, tile by tile.

    RoIAlign is linear in the feature map, so a bin's products with all reference positions are the
    RoIAlign of the key map's correlation with them: one smaller matrix product, then a weighted sum
    of a few of its rows for each bin. No similarity matrix longer than one tile exists.

    Args:
        bins: (N, C) RoI bins of the key frame.
        key_rows: (h * w, C) its feature map, position by position.
        unit_rows: T maps (P_t, C), position by position, normalised.
        k: how many positions to take of each map; all, where it has fewer.
        merge: interpolates a tile's correlation, and keeps the greatest products.
        tile: positions to correlate at a time.
        for_each: goes over the maps.
    """
    bin_norms = bins.norm(dim=1, dtype=torch.promote_types(bins.dtype, torch.float32))
    key_rows = key_rows.contiguous()

    def search_map(rows: Tensor) -> MostSimilar:
        shape = (len(bins), min(k, len(rows)))
        values = bin_norms.new_full(shape, -torch.inf)
        positions = torch.zeros(shape, dtype=torch.long, device=values.device)
        for start in range(0, len(rows), tile):
            correlation = row_products(key_rows, rows[start : start + tile])
            values, positions = merge(correlation, start, values, positions)
        return MostSimilar(positions, values / (bin_norms[:, None] + NORM_EPS))

    return list(for_each(search_map, unit_rows))
