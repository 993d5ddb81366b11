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

from clab_d2.modeling.contrastive.base import (
    CONTRASTIVE_LOSS_REGISTRY,
    ContrastiveFrame,
    map_distinct,
)
from clab_d2.modeling.contrastive.embedding import Embedding
from clab_d2.modeling.contrastive.examples import Examples
from clab_d2.modeling.contrastive.pair_contrast import PairContrast, checked_temperature
from clab_d2.modeling.contrastive.whole_batch import gather_numbers, stable_label


@CONTRASTIVE_LOSS_REGISTRY.register()
class ClipContrast(PairContrast):
    """NT-Xent over the embeddings of all frames of all clips on all GPUs (CLAB's paper).

    A frame's embedding is that of its whole map: conv, ReLU, global average pool, projection.

    Remembered frames are negatives, as their clips are over, but for those of the anchor's video,
    which are left out: they may show what the anchor shows. Within a batch, other clips of the
    video are negatives, as in the paper.
    """

    @configurable
    def __init__(
        self, embedding: Embedding, temperature: float = 0.1, memory_size: int = 0
    ) -> None:
        """
        Args:
            embedding: conv and projection.
            temperature: NT-Xent's.
            memory_size: see :class:`PairContrast`.
        """
        loss = NTXentLoss(temperature=checked_temperature(temperature))
        super().__init__(embedding, loss, memory_size)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "embedding": Embedding(cfg, input_shape),
            **cls.common_arguments(cfg),
        }

    def pool(self, maps: Tensor, frames: Sequence[ContrastiveFrame]) -> Sequence[Tensor]:
        """Maps of N frames (N, C, h, w) -> (1, C) for each, the mean over the whole map.

        A subclass may give (0, C) for a frame that is to be left out.
        """
        return maps.mean(dim=(2, 3)).split(1)

    def embed(self, features: Tensor, frames: Sequence[ContrastiveFrame]) -> Sequence[Tensor]:
        """Tapped maps of N frames (N, C, h, w) -> (1, embed_dim) for each, or (0, embed_dim)."""
        pooled = self.pool(self.embedding.maps(features), frames)
        return self.embedding.project(torch.cat(list(pooled))).split([len(rows) for rows in pooled])

    def examples(self, frames: Sequence[ContrastiveFrame]) -> Examples:
        rows = map_distinct(frames, self.embed)
        embeddings = torch.cat(rows)
        num_clips = gather_numbers(1 + max(frame.clip for frame in frames), embeddings.device)
        first = sum(num_clips[: comm.get_rank()])
        counted = [frame for frame, row in zip(frames, rows, strict=True) if len(row)]
        return Examples(
            embeddings,
            _numbers([first + frame.clip for frame in counted], embeddings),
            _numbers([stable_label(*frame.video) for frame in counted], embeddings),
            embeddings.new_ones(len(embeddings)),
        )

    def pairs(self, anchors: Examples, others: Examples, remembered: bool) -> tuple[Tensor, Tensor]:
        if remembered:
            other_video = anchors.videos[:, None] != others.videos
            return torch.zeros_like(other_video), other_video
        same_clip = anchors.labels[:, None] == others.labels
        return same_clip, ~same_clip


def _numbers(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
