"""A model that only notes what it is given, and a config for it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import nn

from clab_d2 import get_clab_cfg


class NotingModel(nn.Module):
    """Detects one box a frame, whose score tells the mean of all frames aggregated over.

    It keeps its own memory as the contract says, so a frame that never came is a KeyError.
    """

    needs_references = True

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[dict[str, Any]]] = []
        self.memory: dict[int, torch.Tensor | None] = {}

    def forward(self, clips: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        assert not torch.is_grad_enabled() and not self.training
        self.batches.append(clips)
        return [{"instances": self.detect(clip)} for clip in clips]

    def detect(self, clip: dict[str, Any]) -> Instances:
        if clip["frame_id"] == 0:
            self.memory = {}
        self.memory |= clip["images"]
        key = self.memory[clip["frame_id"]]
        used = [key, *(self.memory[frame_id] for frame_id in clip["reference_frame_ids"])]
        self.memory = {i: self.memory[i] for i in clip["kept_frame_ids"]}
        size = (clip["height"], clip["width"])
        count = 0 if key is None else 1
        values = [image.float().mean() for image in used if image is not None]
        return Instances(
            size,
            pred_boxes=Boxes(torch.tensor([[0.0, 0, size[1], size[0]]] * count)),
            scores=torch.stack(values).mean().expand(count) if values else torch.zeros(0),
            pred_classes=torch.zeros(count, dtype=torch.long),
        )

    @property
    def clips(self) -> list[dict[str, Any]]:
        return [clip for batch in self.batches for clip in batch]


def make_cfg(sampling: str = "adaptive", num: int = 4, stride: int = 1, **more: Any) -> CfgNode:
    cfg = get_clab_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.TEST.REFERENCES.SAMPLING = sampling
    cfg.TEST.REFERENCES.NUM = num
    cfg.TEST.REFERENCES.STRIDE = stride
    cfg.merge_from_list([part for item in more.items() for part in item])
    return cfg
