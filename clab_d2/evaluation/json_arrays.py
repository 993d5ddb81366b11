"""Values out of a JSON file as arrays, with nothing converted without a word.

NumPy makes numbers of the strings "1" and of true, cuts 1.5 down to 1 and wraps ids beyond 64 bits
round; here each of these raises.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: The largest id that an array of ids holds.
MAX_ID = 2**63 - 1


def integer_array(values: list[Any]) -> np.ndarray:
    """(N,) int64.

    Raises:
        ValueError: a value is no integer, or does not fit into 64 bits.
    """
    if not values:
        return np.zeros(0, dtype=np.int64)
    array = np.array(values)
    if array.dtype.kind != "i" or array.ndim != 1:
        raise ValueError("ids must be integers of at most 64 bits")
    return array.astype(np.int64, copy=False)


def number_array(values: list[Any]) -> np.ndarray:
    """(N,) float64; NaN and infinity pass.

    Raises:
        ValueError, OverflowError: a value is no number, or none that a float can hold.
    """
    return _numbers(values).reshape(-1)


def box_array(values: list[Any]) -> np.ndarray:
    """(N, 4) float64; NaN and infinity pass.

    Raises:
        ValueError, OverflowError: a box is not four numbers that floats can hold.
    """
    if not values:
        return np.zeros((0, 4))
    array = _numbers(values)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError("bbox must be four numbers: x, y, width, height")
    return array


def _numbers(values: list[Any]) -> np.ndarray:
    if not values:
        return np.zeros(0)
    array = np.array(values)
    # Integers beyond 64 bits are numbers all the same.
    if array.dtype.kind == "O" and all(type(value) in (int, float) for value in array.flat):
        return array.astype(np.float64)
    if array.dtype.kind not in "iuf":
        raise ValueError("expected numbers, found something else")
    return array.astype(np.float64, copy=False)
