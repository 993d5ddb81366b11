"""Contrastive loss: a clip's frames are to be closer to its key frame than other clips' frames."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import nn

from clab_d2 import extend_config
from clab_d2.modeling import CONTRASTIVE_LOSS_REGISTRY, ContrastiveLoss
from clab_d2.modeling.contrastive.base import map_distinct
from clab_d2.modeling.contrastive.whole_batch import (
    as_whole_batch_loss,
    gather_numbers,
    gather_rows,
)


@extend_config
def add_keys(cfg):
    cfg.MODEL.CONTRASTIVE.MARGIN = CfgNode()
    cfg.MODEL.CONTRASTIVE.MARGIN.WIDTH = 0.5


@CONTRASTIVE_LOSS_REGISTRY.register()
class MarginContrast(ContrastiveLoss):
    @configurable
    def __init__(self, channels, embed_dim=128, margin=0.5):
        super().__init__()
        self.project = nn.Linear(channels, embed_dim)
        self.margin = margin

    @classmethod
    def from_config(cls, cfg, input_shape):
        branch = cfg.MODEL.CONTRASTIVE
        return {
            "channels": input_shape.channels,
            "embed_dim": branch.EMBED_DIM,
            "margin": branch.MARGIN.WIDTH,
        }

    def forward(self, frames):
        # Each distinct frame once, whatever the sizes of their maps.
        embeddings = torch.stack(
            map_distinct(frames, lambda maps, _: self.project(maps.mean(dim=(2, 3))))
        )
        clips = torch.tensor([frame.clip for frame in frames], device=embeddings.device)
        # Clips are numbered anew in each process: count on from the processes before.
        num_clips = gather_numbers(int(clips.max()) + 1, clips.device)
        clips = gather_rows(clips + sum(num_clips[: comm.get_rank()]))
        rows = F.normalize(gather_rows(embeddings.float()), dim=1)
        same = clips[:, None] == clips[None]
        cosines = rows @ rows.T
        too_near = (cosines - 1 + self.margin).clamp(min=0)
        loss = torch.where(same, 1 - cosines, too_near).mean()
        return as_whole_batch_loss(loss)
