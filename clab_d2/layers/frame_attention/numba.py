"""Attention over frames with compiled loops, on a CPU where Numba is installed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clab_d2.layers import numba_support
from clab_d2.layers.frame_attention.common import (
    EmbeddedMaps,
    FrameEmbedding,
    FrameRows,
    power_of_two_near_norm,
)
from clab_d2.layers.most_similar.numba import SampleLists, merge_samples

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


@torch.no_grad()
def attend_to_embedded(features: Tensor, rows: FrameRows, maps: EmbeddedMaps) -> Tensor:
    """See :func:`clab_d2.layers.frame_attention.attend_to_embedded_maps`."""
    num_rois, size, _, channels = features.shape
    bias = features.new_zeros(channels) if maps.bias is None else maps.bias
    own, bias, table, weights = (
        tensor.float().contiguous()
        for tensor in (features.reshape(-1, channels), bias, rows.table, rows.weights)
    )
    interpolation = maps.interpolation
    lists = merge_samples(interpolation.positions, interpolation.weights.float())
    embedded = _embed_rois(maps.own, lists, bias, num_rois, size)
    products = own.new_empty(len(own), maps.num_heads, len(maps.references))
    first = 0
    for number, reference in enumerate(maps.references):
        _frame_products(
            embedded, reference, rows.positions, weights, bias, number, first, num_rois, size,
            products,
        )  # fmt: skip
        first += len(reference)
    log_counts = own.new_tensor(rows.counts).log()
    output = _sum_frames(own, embedded, products, table, rows.positions, weights, log_counts)
    return output.view(features.shape).to(features.dtype)


def _embed_rois(
    embedded_map: Tensor, lists: SampleLists, bias: Tensor, num_rois: int, size: int
) -> Tensor:
    """Embeddings of RoI bins.

    Args:
        embedded_map: (h * w, 9, C) of the map that they are pooled from.
        lists: its positions that make each of R * S * S bins.
        bias: (C,).
        num_rois: R.
        size: S.

    Returns:
        (R * S * S, C).
    """
    output = bias.new_empty(num_rois * size * size, len(bias))
    loops = numba_support.load_loops(LOOPS)
    numba_support.in_parallel(
        loops.embed_rois, num_rois, embedded_map.flatten(0, 1), *lists, bias, size, output
    )
    return output


def _frame_products(
    embedded: Tensor,
    embedded_map: Tensor,
    positions: Tensor,
    weights: Tensor,
    bias: Tensor,
    frame: int,
    first: int,
    num_rois: int,
    size: int,
    output: Tensor,
) -> None:
    """Products of the own embeddings with those of what is gathered from one reference frame.

    Args:
        embedded: (R * S * S, C) own embeddings.
        embedded_map: (P_t, 9, C) of the reference's map.
        positions: (R * S * S, T, K) the most similar positions of all maps, one after the other.
        weights: (R * S * S, T, K) their weights.
        bias: (C,).
        frame: which of the T it is.
        first: its first position.
        num_rois: R.
        size: S.
        output: (R * S * S, heads, T), whose entries of this frame are written.
    """
    loops = numba_support.load_loops(LOOPS)
    numba_support.in_parallel(
        loops.frame_products, num_rois, embedded, embedded_map.flatten(0, 1), positions, weights,
        bias, frame, first, size, output,
    )  # fmt: skip


def _sum_frames(
    own: Tensor,
    embedded: Tensor,
    products: Tensor,
    table: Tensor,
    positions: Tensor,
    weights: Tensor,
    log_counts: Tensor,
) -> Tensor:
    """Sums over frames, weighted by a softmax.

    Args:
        own: (N, C) own features.
        embedded: (N, C) own embeddings.
        products: (N, heads, T) of these with the references'.
        table: (P, C) positions of all T maps.
        positions: (N, T, K) the most similar rows of ``table``.
        weights: (N, T, K) their weights.
        log_counts: (T,) logarithm of how often each reference counts.

    Returns:
        (N, C).
    """
    output = torch.empty_like(own)
    loops = numba_support.load_loops(LOOPS)
    numba_support.in_parallel(
        loops.sum_frames, len(own), own, embedded, products, table, positions, weights,
        log_counts, output,
    )  # fmt: skip
    return output
