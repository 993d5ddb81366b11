"""From feature maps to the embeddings that are contrasted."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """3x3 conv, ReLU, a pooling of the loss's choice, and a two-layer projection (CLAB, Fig. 2)."""

    def __init__(self, channels: int, conv_dim: int, hidden_dim: int, embed_dim: int) -> None:
        """
        Args:
            channels: of the tapped map.
            conv_dim, hidden_dim, embed_dim: channels after the conv, within and after the
                projection.
        """
        super().__init__()
        self.conv = nn.Conv2d(channels, conv_dim, 3, padding=1)
        self.projection = nn.Sequential(
            nn.Linear(conv_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, embed_dim),
        )

    def maps(self, features: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, conv_dim, h, w), to be pooled."""
        return F.relu(self.conv(features))

    def project(self, pooled: Tensor) -> Tensor:
        """(N, conv_dim) -> (N, embed_dim)."""
        return self.projection(pooled)
