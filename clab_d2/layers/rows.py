"""Feature maps as tables with a row for each position, and weighted sums of such rows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def map_rows(feature: Tensor) -> Tensor:
    """(C, h, w) -> (h * w, C), contiguous; free for maps in channels-last memory format."""
    return feature.flatten(1).T.contiguous()


def weighted_rows(table: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: (P, D) table, (N, S) positions and weights -> (N, D)."""
    return F.embedding_bag(positions, table, per_sample_weights=weights.to(table.dtype), mode="sum")
