"""Loops over RoIs on NumPy arrays, compiled by Numba: attention over frames.

:mod:`clab_d2.layers.frame_attention.numba` calls them. Imported only where Numba is installed.
"""

from __future__ import annotations

import numpy as np

from clab_d2.layers.numba_rows import sum_rows
from clab_d2.layers.numba_support import compile_loop


@compile_loop
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


@compile_loop
def _dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    total = np.float32(0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@compile_loop
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


@compile_loop
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
    """See :func:`clab_d2.layers.frame_attention.numba._attend_rois`; RoIs ``start`` to ``stop``."""
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


@compile_loop
def _fill_up(rows: np.ndarray, weights: np.ndarray, count: int) -> int:
    """To a multiple of 4, at least 4, with a row of no weight."""
    padded = max(4, (count + 3) // 4 * 4)
    rows[count:padded] = 0
    weights[count:padded] = 0
    return padded


@compile_loop
def embed_rois(
    embedded_map: np.ndarray, rows: np.ndarray, row_weights: np.ndarray, num_rows: np.ndarray,
    bias: np.ndarray, size: int, output: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """See :func:`clab_d2.layers.frame_attention.numba._embed_rois`; RoIs ``start`` to ``stop``."""
    chosen = np.empty(9 * rows.shape[1] + 4, np.int64)
    weights = np.empty(len(chosen), np.float32)
    for roi in range(start, stop):
        for i in range(size):
            for j in range(size):
                count = 0
                for offset in range(9):
                    y, x = i + offset // 3 - 1, j + offset % 3 - 1
                    if 0 <= y < size and 0 <= x < size:
                        n = (roi * size + y) * size + x
                        for s in range(num_rows[n]):
                            if row_weights[n, s] != 0:
                                chosen[count] = np.int64(rows[n, s]) * 9 + offset
                                weights[count] = row_weights[n, s]
                                count += 1
                into = output[(roi * size + i) * size + j]
                count = _fill_up(chosen, weights, count)
                sum_rows(embedded_map, 0, chosen, weights, count, into)
                for c in range(len(into)):
                    into[c] += bias[c]


@compile_loop
def frame_products(
    embedded: np.ndarray, embedded_map: np.ndarray, positions: np.ndarray,
    position_weights: np.ndarray, bias: np.ndarray, frame: int, first: int, size: int,
    output: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """See :func:`clab_d2.layers.frame_attention.numba._frame_products`; RoIs ``start`` to
    ``stop``."""
    channels, heads, k = embedded.shape[1], output.shape[1], positions.shape[2]
    per_head = channels // heads
    chosen = np.empty(9 * k + 4, np.int64)
    weights = np.empty(len(chosen), np.float32)
    theirs = np.empty(channels, np.float32)
    for roi in range(start, stop):
        for i in range(size):
            for j in range(size):
                count = 0
                for offset in range(9):
                    y, x = i + offset // 3 - 1, j + offset % 3 - 1
                    if 0 <= y < size and 0 <= x < size:
                        n = (roi * size + y) * size + x
                        for s in range(k):
                            chosen[count] = (positions[n, frame, s] - first) * 9 + offset
                            weights[count] = position_weights[n, frame, s]
                            count += 1
                count = _fill_up(chosen, weights, count)
                sum_rows(embedded_map, 0, chosen, weights, count, theirs)
                for c in range(channels):
                    theirs[c] += bias[c]
                n = (roi * size + i) * size + j
                for h in range(heads):
                    low, high = h * per_head, (h + 1) * per_head
                    output[n, h, frame] = _dot(embedded[n, low:high], theirs[low:high])


@compile_loop
def sum_frames(
    own: np.ndarray, embedded: np.ndarray, products: np.ndarray, table: np.ndarray,
    positions: np.ndarray, position_weights: np.ndarray, log_counts: np.ndarray,
    output: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """See :func:`clab_d2.layers.frame_attention.numba._sum_frames`; bins ``start`` to ``stop``."""
    heads, num_refs, k = products.shape[1], positions.shape[1], positions.shape[2]
    per_head = own.shape[1] // heads
    scale = np.float32(1.0 / np.sqrt(per_head))
    weights = np.empty(num_refs, np.float32)
    for n in range(start, stop):
        for h in range(heads):
            low, high = h * per_head, (h + 1) * per_head
            e = embedded[n, low:high]
            own_logit = scale * _dot(e, e)
            greatest = own_logit
            for t in range(num_refs):
                weights[t] = scale * products[n, h, t] + log_counts[t]
                greatest = max(greatest, weights[t])
            own_weight = np.exp(own_logit - greatest)
            total = own_weight
            for t in range(num_refs):
                weights[t] = np.exp(weights[t] - greatest)
                total += weights[t]
            into, mine = output[n, low:high], own[n, low:high]
            w = own_weight / total
            for c in range(per_head):
                into[c] = w * mine[c]
            for t in range(num_refs):
                for s in range(k):
                    w = weights[t] / total * position_weights[n, t, s]
                    row = table[positions[n, t, s], low:high]
                    for c in range(per_head):
                        into[c] += w * row[c]
