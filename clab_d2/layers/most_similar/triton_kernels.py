"""Triton kernels of the search for most similar positions; imported only where Triton is.

:mod:`clab_d2.layers.most_similar.triton` launches them and says what they compute. One program
searches one reference map for one block of RoI bins: it goes over the map tile by tile, and keeps
of each tile only the K best of every bin, merged into a running list in registers.
"""

# No "from __future__ import annotations" here: the interpreter of Triton 3.0 reads the annotations.
import triton
import triton.language as tl

# Larger than any position: the position of a slot that nothing has filled yet.
NOWHERE = tl.constexpr(2**30)
# common.NORM_EPS; a kernel reads no plain globals.
NORM_EPS = tl.constexpr(1e-10)


@triton.jit
def _empty_slots(BLOCK_N: tl.constexpr, SLOTS: tl.constexpr):
    """Running lists, unsorted: (BLOCK_N, SLOTS) values and positions, of which K slots are used."""
    values = tl.full((BLOCK_N, SLOTS), float("-inf"), dtype=tl.float32)
    # Positions tell empty slots apart.
    positions = tl.zeros((BLOCK_N, SLOTS), dtype=tl.int32) + NOWHERE
    return values, positions + tl.arange(0, SLOTS)[None, :]


@triton.jit
def _take_best(similarity, columns, values, positions, SLOTS: tl.constexpr, K: tl.constexpr):
    """Merge a tile's K best columns into the running lists.

    Args:
        similarity: (BLOCK_N, BLOCK_P), -inf in columns outside the map.
        columns: (BLOCK_P,) positions in the map, above all that the lists hold.
        values, positions: (BLOCK_N, SLOTS), the running lists.
    """
    used = tl.arange(0, SLOTS)[None, :] < K
    for _ in tl.static_range(K):
        best = tl.max(similarity, axis=1)
        # The lowest of equal columns.
        column = tl.min(tl.where(similarity == best[:, None], columns[None, :], NOWHERE), axis=1)
        similarity = tl.where(columns[None, :] == column[:, None], float("-inf"), similarity)
        # It takes the place of the worst held, of equals the one with the highest position; what
        # is held has lower positions, so it must be better, not equal. NaN never is.
        # Even if all slots are used, "where" stays: Triton 3.0 crashes where a loop's own variable
        # is reduced as it is.
        worst = tl.min(tl.where(used, values, float("inf")), axis=1)
        is_worst = used & (values == worst[:, None])
        last = tl.max(tl.where(is_worst, positions, -1), axis=1)
        replaced = is_worst & (positions == last[:, None]) & (best > worst)[:, None]
        values = tl.where(replaced, best[:, None], values)
        positions = tl.where(replaced, column[:, None], positions)
    return values, positions


@triton.jit
def _store_best_first(
    values,
    positions,
    norms,
    found_positions,
    found_cosines,
    place,
    mask,
    SLOTS: tl.constexpr,
    K: tl.constexpr,
):
    """Sort the running lists, divide by the bins' norms and store.

    Args:
        values, positions: (BLOCK_N, SLOTS).
        norms: (BLOCK_N,) of the bins.
        found_positions, found_cosines: the outputs.
        place: (BLOCK_N,) index of each bin's first entry in the outputs.
        mask: (BLOCK_N,) which bins exist.
    """
    values = tl.where(tl.arange(0, SLOTS)[None, :] < K, values, float("-inf"))
    for rank in tl.static_range(K):
        best = tl.max(values, axis=1)
        is_best = values == best[:, None]
        position = tl.min(tl.where(is_best, positions, 2 * NOWHERE - 1), axis=1)
        taken = is_best & (positions == position[:, None])
        values = tl.where(taken, float("-inf"), values)
        positions = tl.where(taken, 2 * NOWHERE - 1, positions)
        # Where the map has fewer than K positions: a valid one, and -inf for its cosine.
        position = tl.where(position < NOWHERE, position, 0)
        tl.store(found_positions + place + rank, position.to(tl.int64), mask=mask)
        tl.store(found_cosines + place + rank, best / (norms + NORM_EPS), mask=mask)


# Else Triton compiles again for sizes that happen to be 1 or a multiple of 16.
@triton.jit(do_not_specialize=["num_bins", "num_references"])
def direct_kernel(
    bins,
    table,
    inverse_norms,
    bin_norms,
    offsets,
    found_positions,
    found_cosines,
    num_bins,
    num_references,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Bins times reference positions, and the K best, with nothing between in memory.

    Grid: (blocks of bins, references). Shapes, all contiguous: bins (N, C), table (sum P, C),
    inverse_norms (sum P,), bin_norms (N,), offsets (T + 1,) int32, found_* (N, T, K).
    """
    bin_index = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    reference = tl.program_id(1)
    begin = tl.load(offsets + reference)
    length = tl.load(offsets + reference + 1) - begin
    channels = tl.arange(0, BLOCK_C)
    # Rows past the end repeat the last one, which needs no mask; they are not stored, or are -inf.
    bin_row = tl.minimum(bin_index, num_bins - 1).to(tl.int64)
    bin_pointers = bins + bin_row[:, None] * CHANNELS + channels[None, :]
    values, positions = _empty_slots(BLOCK_N, SLOTS)
    for start in range(0, length, BLOCK_P):
        columns = start + tl.arange(0, BLOCK_P)
        table_row = begin + tl.minimum(columns, length - 1)
        table_pointers = table + table_row.to(tl.int64)[None, :] * CHANNELS + channels[:, None]
        similarity = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.float32)
        for channel in range(0, CHANNELS, BLOCK_C):
            if CHANNELS % BLOCK_C == 0:
                left = tl.load(bin_pointers + channel)
                right = tl.load(table_pointers + channel)
            else:
                inside = channels < CHANNELS - channel
                left = tl.load(bin_pointers + channel, mask=inside[None, :], other=0.0)
                right = tl.load(table_pointers + channel, mask=inside[:, None], other=0.0)
            similarity = tl.dot(left, right, similarity, input_precision="ieee")
        similarity *= tl.load(inverse_norms + table_row)[None, :]
        similarity = tl.where((columns < length)[None, :], similarity, float("-inf"))
        values, positions = _take_best(similarity, columns, values, positions, SLOTS, K)
    norms = tl.load(bin_norms + bin_row)
    place = (bin_row * num_references + reference) * K
    mask = bin_index < num_bins
    _store_best_first(
        values, positions, norms, found_positions, found_cosines, place, mask, SLOTS, K
    )


@triton.jit(do_not_specialize=["num_bins", "num_references", "first_reference", "width"])
def interpolated_kernel(
    correlation,
    sample_positions,
    sample_weights,
    inverse_norms,
    bin_norms,
    offsets,
    found_positions,
    found_cosines,
    num_bins,
    num_references,
    first_reference,
    width,
    NUM_SAMPLES: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Weighted sums of the correlation's rows, and the K best, with nothing between in memory.

    Grid: (blocks of bins, references of this group). Shapes, all contiguous: correlation
    (h * w, width) of the key map with the table's rows from the group's first on, sample_* (N, S),
    the others as for :func:`direct_kernel`, over all T references.
    """
    bin_index = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    reference = first_reference + tl.program_id(1)
    group_begin = tl.load(offsets + first_reference)
    begin = tl.load(offsets + reference)
    length = tl.load(offsets + reference + 1) - begin
    bin_row = tl.minimum(bin_index, num_bins - 1).to(tl.int64)
    values, positions = _empty_slots(BLOCK_N, SLOTS)
    for start in range(0, length, BLOCK_P):
        columns = start + tl.arange(0, BLOCK_P)
        inside = columns < length
        similarity = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.float32)
        column_pointers = correlation + (begin - group_begin) + columns
        for sample in range(NUM_SAMPLES):
            key_row = tl.load(sample_positions + bin_row * NUM_SAMPLES + sample).to(tl.int64)
            weight = tl.load(sample_weights + bin_row * NUM_SAMPLES + sample).to(tl.float32)
            rows = tl.load(
                column_pointers[None, :] + (key_row * width)[:, None],
                # Samples outside the map weigh nothing.
                mask=inside[None, :] & (weight != 0.0)[:, None],
                other=0.0,
            )
            similarity += weight[:, None] * rows.to(tl.float32)
        scale = tl.load(inverse_norms + begin + columns, mask=inside, other=0.0)
        similarity = tl.where(inside[None, :], similarity * scale[None, :], float("-inf"))
        values, positions = _take_best(similarity, columns, values, positions, SLOTS, K)
    norms = tl.load(bin_norms + bin_row)
    place = (bin_row * num_references + reference) * K
    mask = bin_index < num_bins
    _store_best_first(
        values, positions, norms, found_positions, found_cosines, place, mask, SLOTS, K
    )
