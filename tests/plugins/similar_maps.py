"""Aggregation on feature maps: a mean over frames, each position weighted by its likeness."""

import math

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import nn

from clab_d2 import extend_config
from clab_d2.modeling import MAP_AGGREGATION_REGISTRY, MapAggregation


@extend_config
def add_keys(cfg):
    cfg.MODEL.SIMILAR_MAPS = CfgNode()
    cfg.MODEL.SIMILAR_MAPS.EMBED_DIM = 16


@MAP_AGGREGATION_REGISTRY.register()
class SimilarMaps(MapAggregation):
    @configurable
    def __init__(self, channels, embed_dim=16):
        """``channels``: of each map, by its name."""
        super().__init__()
        self.embed = nn.ModuleDict({n: nn.Conv2d(c, embed_dim, 1) for n, c in channels.items()})

    @classmethod
    def from_config(cls, cfg, shapes):
        channels = {name: shape.channels for name, shape in shapes.items()}
        return {"channels": channels, "embed_dim": cfg.MODEL.SIMILAR_MAPS.EMBED_DIM}

    def encode(self, images, maps):
        # Of each frame alone, so made once a frame and kept.
        return [F.normalize(embed(maps[name]), dim=1) for name, embed in self.embed.items()]

    def forward(self, key, references, counts):
        result = {}
        for level, name in enumerate(self.embed):
            size = key.maps[name].shape[-2:]
            maps, logits = [key.maps[name]], [torch.ones_like(key.maps[name][:, :1])]
            for frame, count in zip(references, counts, strict=True):
                # A video's frames may differ in size.
                embedding = resize(frame.encoded[level], size)
                cosine = (embedding * key.encoded[level]).sum(dim=1, keepdim=True)
                maps.append(resize(frame.maps[name], size))
                # A frame that counts twice weighs as two frames do.
                logits.append(cosine + math.log(count))
            weights = torch.stack(logits).softmax(dim=0)
            result[name] = (weights * torch.stack(maps)).sum(dim=0).to(key.maps[name].dtype)
        return result


def resize(maps, size):
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
