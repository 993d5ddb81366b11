"""Weighted sums of table rows, compiled by Numba, which the loops of several operators share.

Imported only where Numba is installed.
"""

from __future__ import annotations

import numpy as np

from clab_d2.layers.numba_support import compile_loop


@compile_loop
def sum_rows(
    table: np.ndarray, begin: int, rows: np.ndarray, weights: np.ndarray, count: int,
    output: np.ndarray,
) -> None:  # fmt: skip
    """``output = sum of weights * table[rows, begin:]`` over ``count`` rows, a multiple of 4."""
    end = begin + len(output)
    for s in range(0, count, 4):
        w0, w1, w2, w3 = weights[s], weights[s + 1], weights[s + 2], weights[s + 3]
        r0, r1 = table[rows[s], begin:end], table[rows[s + 1], begin:end]
        r2, r3 = table[rows[s + 2], begin:end], table[rows[s + 3], begin:end]
        if s == 0:
            for p in range(len(output)):
                output[p] = w0 * r0[p] + w1 * r1[p] + w2 * r2[p] + w3 * r3[p]
        else:
            for p in range(len(output)):
                output[p] += w0 * r0[p] + w1 * r1[p] + w2 * r2[p] + w3 * r3[p]
