"""What the backends of the attention over frames take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


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
