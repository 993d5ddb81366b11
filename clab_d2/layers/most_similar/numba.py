"""The search for most similar positions with compiled loops, on a CPU where Numba is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clab_d2.layers import numba_support
from clab_d2.layers.most_similar.common import TILE, MostSimilar, normalized_rows, search_by_tiles
from clab_d2.layers.roi_pooling.pytorch import BinInterpolation

LOOPS = "clab_d2.layers.most_similar.numba_loops"


def is_available(*tensors: Tensor) -> bool:
    """Whether :func:`search` can be used for these tensors."""
    return numba_support.are_fit(*tensors) and numba_support.load_loops(LOOPS) is not None


class SampleLists(NamedTuple):
    """The rows that each of N interpolated bins sums up, each row once.

    Attributes:
        rows: (N, S) row numbers, int32.
        weights: (N, S).
        counts: (N,) how many of them to sum up; the others have no weight.
    """

    rows: Tensor
    weights: Tensor
    counts: Tensor


def merge_samples(positions: Tensor, weights: Tensor) -> SampleLists:
    """Join the samples of a bin that read the same row: the smaller the RoI, the more there are.

    Args:
        positions: (N, S) row that each sample reads.
        weights: (N, S), in single precision.
    """
    num_bins, samples = positions.shape
    # Three more, for the loops read four at a time.
    lists = SampleLists(
        torch.zeros(num_bins, samples + 3, dtype=torch.int32),
        torch.zeros(num_bins, samples + 3),
        torch.zeros(num_bins, dtype=torch.int64),
    )
    loops = numba_support.load_loops(LOOPS)
    numba_support.in_parallel(loops.merge_samples, num_bins, positions, weights, *lists)
    return lists


def keep_greatest(
    correlation: Tensor, lists: SampleLists, first: int, values: Tensor, positions: Tensor
) -> None:
    """Merge the greatest values of interpolated rows of a correlation into the greatest so far.

    Args:
        correlation: (h * w, P) products of key positions with P reference positions, in single
            precision.
        lists: the rows that make each of N bins.
        first: number of the first of the P positions.
        values: (N, K) the greatest so far, greatest first; updated.
        positions: (N, K) their positions; updated.
    """
    loops = numba_support.load_loops(LOOPS)
    numba_support.in_parallel(
        loops.search_bins, len(values), correlation, *lists, first, values, positions
    )


def _with_rows_in_use(key_rows: Tensor, lists: SampleLists) -> tuple[Tensor, SampleLists]:
    """Of the key map only the positions that bins are made of: RoIs leave parts of it out, which
    then need no products.

    Args:
        key_rows: (h * w, C).
        lists: the rows that each bin sums up.

    Returns:
        (P, C) with P <= h * w, and the lists with their numbers among these.
    """
    in_use = torch.zeros(len(key_rows), dtype=torch.bool)
    in_use[lists.rows.flatten()] = True
    numbers = in_use.cumsum(0, dtype=torch.int32) - 1
    return key_rows[in_use], lists._replace(rows=numbers[lists.rows])


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
    lists = merge_samples(interpolation.positions, interpolation.weights.float())
    key_rows, lists = _with_rows_in_use(key_rows, lists)

    def merge(
        correlation: Tensor, start: int, values: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        keep_greatest(correlation.float(), lists, start, values, positions)
        return values, positions

    if unit_rows is None:
        unit_rows = [normalized_rows(rows) for rows in references]
    # Few maps would leave some threads with nothing to do.
    several_each = len(unit_rows) >= 2 * torch.get_num_threads()
    for_each = numba_support.each_on_one_thread if several_each else map
    return search_by_tiles(bins, key_rows, unit_rows, k, merge, tile, for_each)
