"""CLAB's own loss: the frames of a clip are alike, all other clips' frames are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils import comm
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor

from clab_d2.errors import ConfigError
from clab_d2.modeling.contrastive.base import (
    CONTRASTIVE_LOSS_REGISTRY,
    ContrastiveFrame,
    ContrastiveLoss,
    map_distinct,
)
from clab_d2.modeling.contrastive.embedding import Embedding
from clab_d2.modeling.contrastive.whole_batch import (
    as_whole_batch_loss,
    gather_numbers,
    gather_rows,
)


@CONTRASTIVE_LOSS_REGISTRY.register()
class ClipContrast(ContrastiveLoss):
    """NT-Xent over the embeddings of all frames of all clips on all GPUs (CLAB's paper).

    A frame's embedding is that of its whole map: conv, ReLU, global average pool, projection.
    """

    @configurable
    def __init__(self, embedding: Embedding, temperature: float = 0.1) -> None:
        """
        Args:
            embedding: conv and projection.
            temperature: NT-Xent's.
        """
        super().__init__()
        if temperature <= 0:
            raise ConfigError(
                f"MODEL.CONTRASTIVE.TEMPERATURE is {temperature}; it must be positive "
                "(the paper has 0.1)"
            )
        self.embedding = embedding
        self.loss = NTXentLoss(temperature=temperature)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        branch = cfg.MODEL.CONTRASTIVE
        return {
            "embedding": Embedding(
                input_shape.channels, branch.CONV_DIM, branch.HIDDEN_DIM, branch.EMBED_DIM
            ),
            "temperature": branch.TEMPERATURE,
        }

    def pool(self, maps: Tensor, frames: Sequence[ContrastiveFrame]) -> Tensor:
        """Maps of N frames (N, C, h, w) -> (N, C): the mean over the whole map."""
        return maps.mean(dim=(2, 3))

    def embed(self, features: Tensor, frames: Sequence[ContrastiveFrame]) -> Tensor:
        """Tapped maps of N frames (N, C, h, w) -> (N, embed_dim)."""
        return self.embedding.project(self.pool(self.embedding.maps(features), frames))

    def forward(self, frames: Sequence[ContrastiveFrame]) -> Tensor:
        """See :meth:`ContrastiveLoss.forward`; 0 where there is no negative pair."""
        embeddings = torch.stack(map_distinct(frames, self.embed))
        clips = [frame.clip for frame in frames]
        num_clips = gather_numbers(max(clips) + 1, embeddings.device)
        labels = torch.tensor(clips, device=embeddings.device) + sum(num_clips[: comm.get_rank()])
        # Cosines over a temperature of 0.1 want full precision, whatever the autocast mode.
        with torch.autocast(embeddings.device.type, enabled=False):
            loss = self.loss(gather_rows(embeddings.float()), gather_rows(labels))
        return as_whole_batch_loss(loss)
