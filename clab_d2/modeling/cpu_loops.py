"""Loops over RoIs on NumPy arrays, compiled by Numba; :mod:`clab_d2.modeling.cpu_kernels` calls
them. Imported only where Numba is installed.

They release the interpreter's lock and write to disjoint pieces of their outputs, so several
threads can run one each. Sums may be reordered, which lets them run in vector registers.
"""

from __future__ import annotations

import numba
import numpy as np

# Reference positions whose similarities are held at a time: few enough for the first-level cache,
# and for the rows of the correlation that a RoI needs to stay in the second-level cache.
_BLOCK = 512
# Positions whose greatest is found in a vector operation.
_LANES = 64

# Infinities stay what they are: the greatest so far begin as one.
_compile = numba.njit(
    nogil=True,
    cache=True,
    fastmath={"reassoc", "contract", "arcp", "nsz", "nnan"},
    error_model="numpy",
)


@_compile
def merge_samples(
    positions: np.ndarray, weights: np.ndarray, rows: np.ndarray, row_weights: np.ndarray,
    num_rows: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """See :func:`clab_d2.modeling.cpu_kernels.merge_samples`; bins ``start`` to ``stop``."""
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


@_compile
def _interpolate(
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


@_compile
def _insert(value: np.float32, position: int, values: np.ndarray, positions: np.ndarray) -> None:
    """Put a value that belongs there into a list of the greatest, which is sorted."""
    rank = len(values) - 1
    while rank > 0 and value > values[rank - 1]:
        values[rank], positions[rank] = values[rank - 1], positions[rank - 1]
        rank -= 1
    values[rank], positions[rank] = value, position


@_compile
def _keep_greatest(
    products: np.ndarray, begin: int, lanes: np.ndarray, values: np.ndarray, positions: np.ndarray
) -> None:
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
        quarter = _LANES // 4
        for lane in range(quarter):
            lanes[lane] = max(
                max(lanes[lane], lanes[lane + quarter]),
                max(lanes[lane + 2 * quarter], lanes[lane + 3 * quarter]),
            )
        # Rarely is any of them great enough to look for it.
        for lane in range(quarter):
            if lanes[lane] > values[last]:
                for p in range(lane, whole, quarter):
                    if products[p] > values[last]:
                        _insert(products[p], begin + p, values, positions)
    for p in range(whole, len(products)):
        if products[p] > values[last]:
            _insert(products[p], begin + p, values, positions)


@_compile
def search_bins(
    correlation: np.ndarray, rows: np.ndarray, row_weights: np.ndarray, num_rows: np.ndarray,
    first: int, values: np.ndarray, positions: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """See :func:`clab_d2.modeling.cpu_kernels.search`; bins ``start`` to ``stop``."""
    products, lanes = np.empty(_BLOCK, np.float32), np.empty(_LANES, np.float32)
    length = correlation.shape[1]
    for begin in range(0, length, _BLOCK):
        block = products[: min(_BLOCK, length - begin)]
        for n in range(start, stop):
            _interpolate(correlation, begin, rows[n], row_weights[n], num_rows[n], block)
            _keep_greatest(block, first + begin, lanes, values[n], positions[n])


@_compile
def _gather(
    table: np.ndarray, positions: np.ndarray, weights: np.ndarray, output: np.ndarray
) -> None:
    """``output[t] = sum over k of weights[t, k] * table[positions[t, k]]``."""
    for t in range(len(positions)):
        into = output[t]
        row, w = table[positions[t, 0]], weights[t, 0]
        for c in range(len(into)):
            into[c] = w * row[c]
        for k in range(1, positions.shape[1]):
            row, w = table[positions[t, k]], weights[t, k]
            for c in range(len(into)):
                into[c] += w * row[c]


@_compile
def _dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    total = np.float32(0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@_compile
def _add_products(query: np.ndarray, rows: np.ndarray, output: np.ndarray) -> None:
    """``output[t] += query . rows[t]`` for a multiple of 4 rows: four for each reading of the
    query."""
    for t in range(0, len(output), 4):
        r0, r1, r2, r3 = rows[t], rows[t + 1], rows[t + 2], rows[t + 3]
        s0 = s1 = s2 = s3 = np.float32(0)
        for c in range(len(query)):
            q = query[c]
            s0 += q * r0[c]
            s1 += q * r1[c]
            s2 += q * r2[c]
            s3 += q * r3[c]
        output[t] += s0
        output[t + 1] += s1
        output[t + 2] += s2
        output[t + 3] += s3


@_compile
def attend_rois(
    queries: np.ndarray,
    own: np.ndarray,
    embedded: np.ndarray,
    bias: np.ndarray,
    table: np.ndarray,
    positions: np.ndarray,
    weights: np.ndarray,
    log_counts: np.ndarray,
    output: np.ndarray,
    start: int,
    stop: int,
) -> None:
    """See :func:`clab_d2.modeling.cpu_kernels.attend`; RoIs ``start`` to ``stop``."""
    heads, size, channels = queries.shape[0], own.shape[1], own.shape[3]
    num_bins, num_refs, per_head = size * size, positions.shape[1], channels // heads
    scale = np.float32(1.0 / np.sqrt(per_head))
    # To a multiple of 4 references; those added are 0 and take no part in the softmax.
    padded_refs = (num_refs + 3) // 4 * 4
    gathered = np.zeros((num_bins, padded_refs, channels), np.float32)
    logits = np.empty((heads, padded_refs), np.float32)
    for roi in range(start, stop):
        first = roi * num_bins
        for n in range(num_bins):
            _gather(table, positions[first + n], weights[first + n], gathered[n])
        for i in range(size):
            for j in range(size):
                n = i * size + j
                logits[:] = 0
                for offset in range(9):
                    y, x = i + offset // 3 - 1, j + offset % 3 - 1
                    if 0 <= y < size and 0 <= x < size:
                        for h in range(heads):
                            _add_products(
                                queries[h, first + n, offset], gathered[y * size + x], logits[h]
                            )
                for h in range(heads):
                    low, high = h * per_head, (h + 1) * per_head
                    e = embedded[roi, i, j, low:high]
                    shift = _dot(e, bias[low:high])
                    own_logit = scale * _dot(e, e)
                    greatest = own_logit
                    for t in range(num_refs):
                        logits[h, t] = scale * (logits[h, t] + shift) + log_counts[t]
                        greatest = max(greatest, logits[h, t])
                    own_weight = np.exp(own_logit - greatest)
                    total = own_weight
                    for t in range(num_refs):
                        logits[h, t] = np.exp(logits[h, t] - greatest)
                        total += logits[h, t]
                    into, mine = output[roi, i, j, low:high], own[roi, i, j, low:high]
                    w = own_weight / total
                    for c in range(per_head):
                        into[c] = w * mine[c]
                    for t in range(num_refs):
                        w, value = logits[h, t] / total, gathered[n, t, low:high]
                        for c in range(per_head):
                            into[c] += w * value[c]
