"""What the backends of the attention over frames take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clab_d2.layers.matrix_product import row_products
from clab_d2.layers.roi_pooling import BinInterpolation


class FrameRows(NamedTuple):
    """What N RoI bins gather from T reference frames: weighted sums of K rows of each.

    Attributes:
        table: (P, C) positions of all T feature maps, one map after the other.
        positions: (N, T, K) rows of ``table``.
        weights: (N, T, K) their weights.
        counts: T numbers: how often each reference counts.
    """

    table: Tensor
    positions: Tensor
    weights: Tensor
    counts: Sequence[int]


class FrameEmbedding(NamedTuple):
    """The embedding, a 3x3 convolution, whose dot products weight the frames.

    Attributes:
        own: (R, S, S, C) the own features' embeddings.
        weight: (C, C, 3, 3) of the convolution.
        bias: (C,), or None.
        num_heads: heads that the embedding's channels are cut into.
    """

    own: Tensor
    weight: Tensor
    bias: Tensor | None
    num_heads: int


class EmbeddedMaps(NamedTuple):
    """The embedding, a 3x3 convolution, as linear maps of its 9 offsets, applied to whole maps.

    RoI bins and what they gather are weighted sums of positions, so their embeddings are weighted
    sums of these.

    Attributes:
        own: (h * w, 9, C) of the key frame's map, without bias; see :func:`embed_map`.
        interpolation: how the RoI bins are made of its positions.
        references: of each reference's map, (P_t, 9, C).
        bias: (C,) of the convolution, or None.
        num_heads: heads that the embedding's channels are cut into.
    """

    own: Tensor
    interpolation: BinInterpolation
    references: Sequence[Tensor]
    bias: Tensor | None
    num_heads: int


def embed_map(rows: Tensor, weight: Tensor) -> Tensor:
    """What a 3x3 convolution makes of each position of a map at each of its 9 offsets, apart.

    Args:
        rows: (P, C) the map, position by position.
        weight: (C', C, 3, 3) of the convolution.

    Returns:
        (P, 9, C') in single precision at least, rounded to bf16 where the map is in bf16.
    """
    # Not in fp16, which holds an embedding but perhaps not its part at one offset.
    dtype = torch.float32 if rows.dtype == torch.float16 else rows.dtype
    precise = torch.promote_types(dtype, torch.float32)
    kernel = weight.permute(2, 3, 0, 1).flatten(0, 2).to(dtype)
    with torch.autocast(rows.device.type, enabled=False):
        return row_products(rows.to(dtype), kernel).to(precise).view(len(rows), 9, -1)


def power_of_two_near_norm(embedded: Tensor) -> Tensor:
    """What brings the norms of embeddings into 0.5 to 1, without rounding them.

    With embeddings as large as that, products with what references gather are at most as large as
    the references' embeddings, hence within the range of half precision (fp16 ends at 65504) where
    these are.

    Args:
        embedded: (..., C / heads).

    Returns:
        (...), powers of two, in single precision at least; 1 where an embedding is all zero.
    """
    precise = torch.promote_types(embedded.dtype, torch.float32)
    norms = torch.linalg.vector_norm(embedded, dim=-1, dtype=precise)
    return torch.where(norms > 0, norms / torch.frexp(norms).mantissa, 1.0)
