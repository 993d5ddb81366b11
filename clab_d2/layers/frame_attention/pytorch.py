"""Attention over frames, and the mean over frames, in PyTorch's operators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clab_d2.layers.frame_attention.common import (
    EmbeddedMaps,
    FrameEmbedding,
    FrameRows,
    power_of_two_near_norm,
)
from clab_d2.layers.rows import weighted_rows

# Working memory, which goes a few RoIs at a time.
CHUNK_BYTES_CPU = 64 * 2**20
CHUNK_BYTES_CUDA = 2**30


@torch.no_grad()
def attend(features: Tensor, rows: FrameRows, embedding: FrameEmbedding) -> Tensor:
    """See :func:`clab_d2.layers.frame_attention.attend_over_frames`."""
    output = torch.empty_like(features, memory_format=torch.contiguous_format)
    for chunk, gathered in _gather(features, rows, 9 * embedding.num_heads):
        part = embedding._replace(own=embedding.own[chunk])
        output[chunk] = _attend(features[chunk], gathered, rows.counts, part)
    return output


@torch.no_grad()
def mean(features: Tensor, rows: FrameRows) -> Tensor:
    """See :func:`clab_d2.layers.frame_attention.mean_over_frames`."""
    output = torch.empty_like(features, memory_format=torch.contiguous_format)
    frames = 1 + sum(rows.counts)
    for chunk, gathered in _gather(features, rows, 0):
        own = features[chunk]
        # Shares, not counts: a sum over frames may be beyond the range of half precision.
        total = torch.einsum("ntc,t->nc", gathered, gathered.new_tensor(rows.counts) / frames)
        output[chunk] = own / frames + total.view_as(own)
    return output


def _gather(features: Tensor, rows: FrameRows, more_rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Some RoIs at a time, and what their bins gather.

    Args:
        features: (R, S, S, C).
        rows: of their bins.
        more_rows: what else is held of each bin, in units of C numbers.

    Yields:
        Which RoIs, and (their number * S * S, T, C).
    """
    num_rois, size, _, channels = features.shape
    num_refs = rows.positions.shape[1]
    budget = CHUNK_BYTES_CUDA if features.is_cuda else CHUNK_BYTES_CPU
    per_roi = size * size * channels * (num_refs + more_rows) * features.element_size()
    step = max(1, budget // per_roi)
    for start in range(0, num_rois, step):
        chunk = slice(start, min(start + step, num_rois))
        bins = slice(chunk.start * size * size, chunk.stop * size * size)
        gathered = weighted_rows(
            rows.table, rows.positions[bins].flatten(0, 1), rows.weights[bins].flatten(0, 1)
        )
        yield chunk, gathered.view(-1, num_refs, channels)


def _attend(
    own: Tensor, gathered: Tensor, counts: Sequence[int], embedding: FrameEmbedding
) -> Tensor:
    """Attention over frames for some RoIs.

    Args:
        own: (R, S, S, C) RoI features.
        gathered: (R * S * S, T, C) most similar features of T references.
        counts: how often each reference counts.
        embedding: of these RoIs.

    Returns:
        (R, S, S, C).
    """
    num_rois, size, _, channels = own.shape
    heads = embedding.num_heads
    per_head, num_bins = channels // heads, num_rois * size * size
    by_head = embedding.own.reshape(num_rois, size, size, heads, per_head)
    # Logits are sums of many products: they go in single precision at least, and scaled down.
    scales = power_of_two_near_norm(by_head)
    precise = scales.dtype
    scaled = (by_head / scales[..., None]).to(by_head.dtype)
    padded = F.pad(scaled, (0, 0, 0, 0, 1, 1, 1, 1))
    offsets = [(dy, dx) for dy in range(3) for dx in range(3)]
    # At position s, offset d: the embedding of bin s - d, whose conv looks at s through W[d].
    looking = torch.stack(
        [padded[:, 2 - dy : 2 - dy + size, 2 - dx : 2 - dx + size] for dy, dx in offsets]
    )
    looking = looking.permute(0, 4, 1, 2, 3, 5).reshape(9 * heads, num_bins, per_head)
    kernel = embedding.weight.to(own.dtype).view(heads, per_head, channels, 9)
    kernel = kernel.permute(3, 0, 1, 2).reshape(9 * heads, per_head, channels)
    queries = torch.bmm(looking, kernel)
    products = torch.bmm(gathered, queries.permute(1, 2, 0)).to(precise)
    products = products.view(num_rois, size, size, -1, 9, heads)
    padded = F.pad(products, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
    logits = sum(
        padded[:, dy : dy + size, dx : dx + size, :, index]
        for index, (dy, dx) in enumerate(offsets)
    )
    if embedding.bias is not None:
        bias = embedding.bias.to(precise).view(heads, per_head)
        logits = logits + (scaled * bias).sum(dim=-1)[..., None, :]
    own_logits = scaled.to(precise).square().sum(dim=-1) * scales
    logits = torch.cat([own_logits[..., None, :], logits], dim=3) * scales[..., None, :]
    logs = logits.new_tensor([0.0] + [math.log(count) for count in counts])
    weights = (logits / math.sqrt(per_head) + logs[:, None]).softmax(dim=3)
    # (bins, heads, 1, T) x (bins, heads, T, C / heads)
    weights = weights.view(num_bins, -1, heads).transpose(1, 2).to(own.dtype)
    values = gathered.view(num_bins, -1, heads, per_head).transpose(1, 2)
    total = torch.matmul(weights[:, :, None, 1:], values)[:, :, 0]
    total = total + weights[:, :, :1] * own.reshape(num_bins, heads, per_head)
    return total.reshape(own.shape)


@torch.no_grad()
def attend_to_embedded(features: Tensor, rows: FrameRows, maps: EmbeddedMaps) -> Tensor:
    """See :func:`clab_d2.layers.frame_attention.attend_to_embedded_maps`."""
    shape, channels = features.shape, features.shape[-1]
    num_bins, num_refs = rows.positions.shape[:2]
    # Half precision is too coarse for logits and sums over frames.
    precise = torch.promote_types(features.dtype, torch.float32)
    own, table, share = (
        tensor.to(precise)
        for tensor in (features.reshape(-1, channels), rows.table, rows.weights)
    )
    bias = 0 if maps.bias is None else maps.bias.to(precise)

    def embed(embedded_map: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        offsets = torch.arange(9, device=positions.device)[:, None]
        rows_of = _neighbours(positions, shape) * 9 + offsets
        embedded = weighted_rows(
            embedded_map.flatten(0, 1), rows_of.flatten(1), _neighbours(weights, shape).flatten(1)
        )
        return (embedded.to(precise) + bias).unflatten(1, (maps.num_heads, -1))

    embedded = embed(maps.own, *maps.interpolation)
    logits = own.new_empty(1 + num_refs, num_bins, maps.num_heads)
    logits[0] = (embedded * embedded).sum(dim=2)
    first = 0
    for index, reference in enumerate(maps.references):
        theirs = embed(reference, rows.positions[:, index] - first, share[:, index])
        logits[1 + index] = (embedded * theirs).sum(dim=2)
        first += len(reference)
    logits /= math.sqrt(channels / maps.num_heads)
    logits[1:] += own.new_tensor(rows.counts).log()[:, None, None]
    weights = logits.softmax(dim=0)
    by_head = (num_bins, maps.num_heads, -1)
    total = weights[0][..., None] * own.view(by_head)
    for index in range(num_refs):
        gathered = weighted_rows(table, rows.positions[:, index], share[:, index])
        total += weights[1 + index][..., None] * gathered.view(by_head)
    return total.reshape(shape).to(features.dtype)


def _neighbours(values: Tensor, shape: Sequence[int]) -> Tensor:
    """What the 3x3 neighbours of each RoI bin have; 0 where these are outside the RoI.

    Args:
        values: (R * S * S, K).
        shape: (R, S, S, ...).

    Returns:
        (R * S * S, 9, K).
    """
    num_rois, size = shape[:2]
    padded = F.pad(values.view(num_rois, size, size, -1), (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, y : y + size, x : x + size] for y in range(3) for x in range(3)]
    return torch.stack(shifted, dim=3).flatten(0, 2)
