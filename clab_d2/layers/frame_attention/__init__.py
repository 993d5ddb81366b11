"""Aggregation of RoI features over the key frame and its reference frames, without gradients.

The paper's way embeds what is gathered from every reference: a 3x3 convolution over RoIs x frames.
An embedding is needed only for its dot product with the own embedding e0, and the convolution W is
linear, so with u[d, h] = W[d, h]^T e0[h] for each of its 9 offsets d and each head h, the product
at a bin is the sum over d of u[d, h] . M(bin + d) plus e0[h] . bias, M being what was gathered
(docs/method.md, 'Where the time goes', c). No reference is ever embedded, and few RoIs at a time
hold what they gather.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clab_d2.layers.frame_attention import numba, pytorch
from clab_d2.layers.frame_attention.common import (
    EmbeddedMaps,
    FrameEmbedding,
    FrameRows,
    embed_map,
)

__all__ = [
    "EmbeddedMaps",
    "FrameEmbedding",
    "FrameRows",
    "attend_over_frames",
    "attend_to_embedded_maps",
    "embed_map",
    "mean_over_frames",
]


@torch.no_grad()
def attend_over_frames(features: Tensor, rows: FrameRows, embedding: FrameEmbedding) -> Tensor:
    """Sums over frames, weighted by a softmax of their embeddings' products with the own one.

    Args:
        features: (R, S, S, C) own RoI features.
        rows: what their R * S * S bins gather from the references.
        embedding: what weights the frames, for each bin and head.

    Returns:
        (R, S, S, C), contiguous.
    """
    backend = numba if numba.is_available(features, embedding.own, rows.table) else pytorch
    return backend.attend(features, rows, embedding)


@torch.no_grad()
def attend_to_embedded_maps(features: Tensor, rows: FrameRows, maps: EmbeddedMaps) -> Tensor:
    """:func:`attend_over_frames` with the embeddings made of those of whole maps.

    Args:
        features: (R, S, S, C) own RoI features, as ``maps.interpolation`` makes them.
        rows: what their R * S * S bins gather from the references; its positions are those of
            ``maps.references``, one after the other.
        maps: the maps' embeddings.

    Returns:
        (R, S, S, C), contiguous.
    """
    backend = numba if numba.is_available(features, maps.own, rows.table) else pytorch
    return backend.attend_to_embedded(features, rows, maps)


@torch.no_grad()
def mean_over_frames(features: Tensor, rows: FrameRows) -> Tensor:
    """The same with every frame of equal weight.

    Args:
        features, rows: as for :func:`attend_over_frames`.

    Returns:
        (R, S, S, C), contiguous.
    """
    return pytorch.mean(features, rows)
