"""Backbone: four strided convs with group norm; its maps are called s8 and s16."""

from itertools import pairwise

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from clab_d2 import extend_config


@extend_config
def add_keys(cfg):
    cfg.MODEL.SMALL_BACKBONE = CfgNode()
    cfg.MODEL.SMALL_BACKBONE.WIDTH = 16


@BACKBONE_REGISTRY.register()
class SmallBackbone(Backbone):
    @configurable
    def __init__(self, in_channels=3, width=16):
        super().__init__()
        dims = [in_channels, width, width, 2 * width, 2 * width]
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after))
            for before, after in pairwise(dims)
        )
        self.width = width

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {"in_channels": input_shape.channels, "width": cfg.MODEL.SMALL_BACKBONE.WIDTH}

    @property
    def size_divisibility(self):
        return 16  # images are padded to a multiple of it

    def output_shape(self):
        return {
            "s8": ShapeSpec(channels=2 * self.width, stride=8),
            "s16": ShapeSpec(channels=2 * self.width, stride=16),
        }

    def forward(self, images):
        maps = []
        for conv in self.convs:
            images = F.relu(conv(images))
            maps.append(images)
        return {"s8": maps[2], "s16": maps[3]}
