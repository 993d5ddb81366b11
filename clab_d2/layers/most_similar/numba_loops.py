"""Loops over RoI bins on NumPy arrays, compiled by Numba: the search for most similar positions.

:mod:`clab_d2.layers.most_similar.numba` calls them. Imported only where Numba is installed.
"""

from __future__ import annotations

import numpy as np

from clab_d2.layers.numba_rows import sum_rows
from clab_d2.layers.numba_support import compile_loop

# Reference positions whose similarities are held at a time: few enough for the first-level cache
# and for the rows of the correlation that a RoI needs to stay in the second-level cache.
_BLOCK = 640
# Positions whose greatest is found in a vector operation.
_LANES = 64
_QUARTER = _LANES // 4


@compile_loop
def merge_samples(
    positions: np.ndarray, weights: np.ndarray, rows: np.ndarray, row_weights: np.ndarray,
    num_rows: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """See :func:`clab_d2.layers.most_similar.numba.merge_samples`; bins ``start`` to ``stop``."""
    for n in range(start, stop):
        count = 0
        for s in range(positions.shape[1]):
            if weights[n, s] == 0:
                continue
            place = count
            for earlier in range(count):
                if rows[n, earlier] == positions[n, s]:
                    place = earlier
            if place == count:
                rows[n, count] = positions[n, s]
                row_weights[n, count] = 0
                count += 1
            row_weights[n, place] += weights[n, s]
        # Rows go four at a time; those beyond the count are row 0 with weight 0.
        num_rows[n] = max(4, (count + 3) // 4 * 4)


@compile_loop
def _insert(value: np.float32, position: int, values: np.ndarray, positions: np.ndarray) -> None:
    """Put a value that belongs there into a list of the greatest, which is sorted."""
    rank = len(values) - 1
    while rank > 0 and value > values[rank - 1]:
        values[rank], positions[rank] = values[rank - 1], positions[rank - 1]
        rank -= 1
    values[rank], positions[rank] = value, position


@compile_loop
def _least_greatest(lanes: np.ndarray, count: int) -> np.float32:
    """The least of the greatest of ``count`` groups of lanes or more: so many values are as great.
    Uses the lanes up."""
    groups = len(lanes)
    if groups < count:
        return np.float32(-np.inf)
    while groups // 2 >= count:
        groups //= 2
        for lane in range(groups):
            lanes[lane] = max(lanes[lane], lanes[lane + groups])
    least = lanes[0]
    for lane in range(1, groups):
        least = min(least, lanes[lane])
    return least


@compile_loop
def _keep_greatest(
    products: np.ndarray, begin: int, lanes: np.ndarray, merged: np.ndarray, values: np.ndarray,
    positions: np.ndarray,
) -> None:  # fmt: skip
    """Merge a block of products, of the positions from ``begin`` on, into the greatest so far."""
    last = len(values) - 1
    whole = len(products) // _LANES * _LANES
    if whole:
        for lane in range(_LANES):
            lanes[lane] = products[lane]
        for group in range(_LANES, whole, _LANES):
            part = products[group : group + _LANES]
            for lane in range(_LANES):
                lanes[lane] = max(lanes[lane], part[lane])
        for lane in range(_QUARTER):
            lanes[lane] = merged[lane] = max(
                max(lanes[lane], lanes[lane + _QUARTER]),
                max(lanes[lane + 2 * _QUARTER], lanes[lane + 3 * _QUARTER]),
            )
        # Few lanes have a value that is great enough, so few are looked through.
        least = max(_least_greatest(merged, len(values)), values[last])
        for lane in range(_QUARTER):
            if lanes[lane] >= least:
                for p in range(lane, whole, _QUARTER):
                    if products[p] >= least and products[p] > values[last]:
                        _insert(products[p], begin + p, values, positions)
    for p in range(whole, len(products)):
        if products[p] > values[last]:
            _insert(products[p], begin + p, values, positions)


@compile_loop
def search_bins(
    correlation: np.ndarray, rows: np.ndarray, row_weights: np.ndarray, num_rows: np.ndarray,
    first: int, values: np.ndarray, positions: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """See :func:`clab_d2.layers.most_similar.numba.keep_greatest`; bins ``start`` to ``stop``."""
    products = np.empty(_BLOCK, np.float32)
    lanes, merged = np.empty(_LANES, np.float32), np.empty(_QUARTER, np.float32)
    length = correlation.shape[1]
    for begin in range(0, length, _BLOCK):
        block = products[: min(_BLOCK, length - begin)]
        for n in range(start, stop):
            sum_rows(correlation, begin, rows[n], row_weights[n], num_rows[n], block)
            _keep_greatest(block, first + begin, lanes, merged, values[n], positions[n])
