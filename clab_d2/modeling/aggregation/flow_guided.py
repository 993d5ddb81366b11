"""Flow-guided feature aggregation: reference maps, warped onto the key frame along optical flow.

Source: "Flow-Guided Feature Aggregation for Video Object Detection" (FGFA, ICCV 2017), with RAFT
(ECCV 2020) or dense inverse search (ECCV 2016) in the place of FlowNet. See docs/method.md,
'Flow-guided aggregation'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.base import (
    MAP_AGGREGATION_REGISTRY,
    FrameMaps,
    MapAggregation,
)
from clab_d2.modeling.aggregation.dis_flow import DISFlow
from clab_d2.modeling.aggregation.optical_flow import OpticalFlow, warp
from clab_d2.modeling.aggregation.raft_flow import RAFTFlow

#: What ``MODEL.FLOW_GUIDED.FLOW`` may be.
FLOWS = ("RAFT", "DIS")


@MAP_AGGREGATION_REGISTRY.register()
class FlowGuided(MapAggregation):
    """Weighted mean of the key frame's map and the reference maps, warped onto it.

    At each position p the weights are a softmax over frames j of
    ``cos(E(f_j->key)(p), E(f_key)(p))``: the paper's equation for them with its normalisation over
    frames, E an embedding network of three convs on each map. The key frame's own map counts once,
    or as often as the key frame is among its references.
    """

    @configurable
    def __init__(
        self,
        channels: Mapping[str, int],
        flow: OpticalFlow,
        embed_dims: Sequence[int] = (512, 512, 2048),
    ) -> None:
        """
        Args:
            channels: of the feature maps, by name; each has an embedding network of its own.
            flow: gives the flow.
            embed_dims: output channels of the embedding's 1x1, 3x3 and 1x1 conv.
        """
        super().__init__()
        self.flow = flow
        self.embed = nn.ModuleDict(
            {name: _embedding(number, embed_dims) for name, number in channels.items()}
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        keys = cfg.MODEL.FLOW_GUIDED
        if len(keys.EMBED_DIMS) != 3 or min(keys.EMBED_DIMS) < 1:
            raise ConfigError(
                f"MODEL.FLOW_GUIDED.EMBED_DIMS is {keys.EMBED_DIMS}; give three numbers of channels"
            )
        if keys.FLOW not in FLOWS:
            raise ConfigError(
                f"MODEL.FLOW_GUIDED.FLOW is {keys.FLOW!r}; choose one of {', '.join(FLOWS)}"
            )
        if keys.FLOW_SCALE <= 0:
            raise ConfigError(
                f"MODEL.FLOW_GUIDED.FLOW_SCALE is {keys.FLOW_SCALE}; it must be above 0"
            )
        if keys.FLOW_UPDATES < 1:
            raise ConfigError(
                f"MODEL.FLOW_GUIDED.FLOW_UPDATES is {keys.FLOW_UPDATES}; it must be at least 1"
            )
        return {
            "channels": {name: shape.channels for name, shape in shapes.items()},
            "flow": _build_flow(cfg),
            "embed_dims": keys.EMBED_DIMS,
        }

    def encode(self, images: Tensor, maps: dict[str, Tensor]) -> Sequence[Tensor]:
        """What flow needs of each frame alone; see :meth:`MapAggregation.encode`."""
        return self.flow.encode(images)

    def forward(
        self, key: FrameMaps, references: Sequence[FrameMaps], counts: Sequence[int]
    ) -> dict[str, Tensor]:
        """See :meth:`MapAggregation.forward`."""
        own_count = sum(c for frame, c in zip(references, counts, strict=True) if frame is key)
        others = [frame for frame in references if frame is not key]
        logs = [math.log(max(own_count, 1))] + [
            math.log(c) for frame, c in zip(references, counts, strict=True) if frame is not key
        ]
        flows: Sequence[Tensor] = ()
        if others:
            flows = self.flow(key.encoded, [frame.encoded for frame in others]).split(1)
        return {
            name: self._aggregate(
                self.embed[name], own, [frame.maps[name] for frame in others], flows, logs
            )
            for name, own in key.maps.items()
        }

    def _aggregate(
        self,
        embed: nn.Module,
        own: Tensor,
        others: Sequence[Tensor],
        flows: Sequence[Tensor],
        logs: Sequence[float],
    ) -> Tensor:
        """One level's map.

        Args:
            embed: its embedding network.
            own: (1, C, h, w), the key frame's.
            others: (1, C, h_t, w_t) of each other frame.
            flows: to each of them, see :meth:`OpticalFlow.forward`.
            logs: logarithm of how often the own map and each other counts.
        """
        maps = [own] + [
            warp(other, flow, own.shape[-2:]) for other, flow in zip(others, flows, strict=True)
        ]
        target = _unit(embed(own))
        # Frame by frame: embeddings are wide, and only their cosines are needed.
        cosines = torch.cat([(target * target).sum(dim=1)] + [
            (_unit(embed(warped)) * target).sum(dim=1) for warped in maps[1:]
        ])  # fmt: skip
        weights = (cosines + cosines.new_tensor(logs).view(-1, 1, 1)).softmax(dim=0)
        total = sum(
            weight * each.to(weight.dtype) for weight, each in zip(weights, maps, strict=True)
        )
        if not others:
            total = total + self._unused_flow(total)
        return total.to(own.dtype)

    def _unused_flow(self, like: Tensor) -> Tensor:
        """Zero, of every trained parameter of the flow network.

        DistributedDataParallel waits for the gradients of all parameters, also in a step that has
        only stills, whose references are they themselves.
        """
        zero = like.new_zeros(())
        if torch.is_grad_enabled():
            for parameter in self.flow.parameters():
                if parameter.requires_grad:
                    zero = zero + 0.0 * parameter.sum()
        return zero


def _build_flow(cfg: CfgNode) -> OpticalFlow:
    keys = cfg.MODEL.FLOW_GUIDED
    images = {
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "channel_order": cfg.INPUT.FORMAT,
        "scale": keys.FLOW_SCALE,
    }
    if keys.FLOW == "RAFT":
        return RAFTFlow(
            **images,
            weights=keys.FLOW_WEIGHTS,
            num_updates=keys.FLOW_UPDATES,
            trained=keys.TRAIN_FLOW,
        )
    if keys.TRAIN_FLOW:
        raise ConfigError(
            f"MODEL.FLOW_GUIDED.TRAIN_FLOW is True, but {keys.FLOW} has no weights; set it False"
        )
    return DISFlow(**images)


def _embedding(channels: int, dims: Sequence[int]) -> nn.Sequential:
    """The paper's embedding network: 1x1, 3x3 and 1x1 conv."""
    first, second, last = dims
    convs = [
        nn.Conv2d(channels, first, 1),
        nn.Conv2d(first, second, 3, padding=1),
        nn.Conv2d(second, last, 1),
    ]
    for conv in convs[:-1]:
        c2_msra_fill(conv)
    c2_xavier_fill(convs[-1])
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


def _unit(embeddings: Tensor) -> Tensor:
    """(N, D, h, w) of length 1 over D, in single precision at least."""
    precise = torch.promote_types(embeddings.dtype, torch.float32)
    return F.normalize(embeddings.to(precise), dim=1)
