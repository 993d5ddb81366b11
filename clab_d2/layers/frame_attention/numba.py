"""Attention over frames with compiled loops, on a CPU where Numba is installed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clab_d2.layers import numba_support
from clab_d2.layers.frame_attention.common import (
    FrameEmbedding,
    FrameRows,
    power_of_two_near_norm,
)

LOOPS = "clab_d2.layers.frame_attention.numba_loops"
# RoIs whose queries are held at a time: enough for an efficient product.
_ROIS_AT_A_TIME = 32


def is_available(*tensors: Tensor) -> bool:
    """Whether :func:`attend` can be used for these tensors."""
    return numba_support.are_fit(*tensors) and numba_support.load_loops(LOOPS) is not None


@torch.no_grad()
def attend(features: Tensor, rows: FrameRows, embedding: FrameEmbedding) -> Tensor:
    """See :func:`clab_d2.layers.frame_attention.attend_over_frames`."""
    num_rois, size, _, channels = features.shape
    heads, num_bins = embedding.num_heads, size * size
    per_head = channels // heads
    output = features.new_empty(features.shape, dtype=torch.float32)
    embedded, bias = embedding.own, embedding.bias
    # The products in whatever precision holds, the loops in single precision.
    kernel = embedding.weight.to(embedded.dtype).view(heads, per_head, channels, 9)
    kernel = kernel.permute(0, 1, 3, 2).reshape(heads, per_head, 9 * channels)
    bias = bias if bias is not None else features.new_zeros(channels)
    own, bias, table, weights = (
        tensor.float().contiguous() for tensor in (features, bias, rows.table, rows.weights)
    )
    log_counts = own.new_tensor(rows.counts).log()
    step = min(_ROIS_AT_A_TIME, num_rois) * num_bins
    room = own.new_empty(heads * step * 9 * channels)
    by_head = embedded.reshape(-1, heads, per_head)
    for start in range(0, num_rois, _ROIS_AT_A_TIME):
        chunk = slice(start, min(start + _ROIS_AT_A_TIME, num_rois))
        bins = slice(chunk.start * num_bins, chunk.stop * num_bins)
        shape = (heads, bins.stop - bins.start, 9 * channels)
        queries = room[: math.prod(shape)].view(shape)
        for head in range(heads):
            if by_head.dtype == queries.dtype:
                torch.mm(by_head[bins, head], kernel[head], out=queries[head])
            else:
                part = by_head[bins, head]
                scales = power_of_two_near_norm(part)[:, None]
                product = (part / scales).to(part.dtype) @ kernel[head]
                torch.mul(product, scales, out=queries[head])
        _attend_rois(
            queries.unflatten(2, (9, channels)),
            own[chunk],
            embedded[chunk].float().contiguous(),
            bias,
            table,
            rows.positions[bins],
            weights[bins],
            log_counts,
            output[chunk],
        )
    return output.to(features.dtype)


def _attend_rois(
    queries: Tensor,
    own: Tensor,
    embedded: Tensor,
    bias: Tensor,
    table: Tensor,
    positions: Tensor,
    weights: Tensor,
    log_counts: Tensor,
    output: Tensor,
) -> None:
    """The loops over R RoIs with S x S bins each; writes ``output``.

    Args:
        queries: (heads, R * S * S, 9, C) the embedding conv's transpose, applied to the own
            embedding of each bin and head, for each of the conv's offsets.
        own: (R, S, S, C) own features.
        embedded: (R, S, S, C) own embeddings.
        bias: (C,) of the embedding conv.
        table: (P, C) features of all positions of all T references.
        positions: (R * S * S, T, K) the most similar rows of ``table``.
        weights: (R * S * S, T, K) their weights.
        log_counts: (T,) logarithm of how often each reference counts.
        output: (R, S, S, C), contiguous.
    """
    loops = numba_support.load_loops(LOOPS)
    numba_support.in_parallel(
        loops.attend_rois, len(own), queries, own, embedded, bias, table, positions, weights,
        log_counts, output,
    )  # fmt: skip
