"""Detector head: one stage, with a score of each class and one box at every position of a map."""

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from fvcore.nn import giou_loss, sigmoid_focal_loss
from torch import nn

from clab_d2.modeling import TemporalDetector


@META_ARCH_REGISTRY.register()
class PointDetector(TemporalDetector):
    head_needs_references = False  # all that it takes of other frames comes with the maps

    @configurable
    def __init__(self, *, shape, num_classes, **kwargs):
        super().__init__(**kwargs)
        self.stride = shape.stride
        self.predictor = nn.Conv2d(shape.channels, num_classes + 4, 3, padding=1)

    @classmethod
    def from_config(cls, cfg):
        (name,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shared = super().from_config(cfg, [name])
        shape = shared["backbone"].output_shape()[name]
        return {**shared, "shape": shape, "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES}

    def reference_parts(self, frames):
        """Nothing beside the maps."""

    def predict(self, frame):
        (feature,) = frame.features.values()
        predicted = self.predictor(feature)[0].flatten(1).T.float()
        rows, columns = (torch.arange(n, device=feature.device) for n in feature.shape[-2:])
        centres = (torch.cartesian_prod(rows, columns).flip(1) + 0.5) * self.stride
        left_top, right_bottom = (predicted[:, -4:].exp() * self.stride).chunk(2, dim=1)
        boxes = torch.cat([centres - left_top, centres + right_bottom], dim=1)
        return predicted[:, :-4], centres, boxes

    def detection_losses(self, keys, references, targets):
        cls_loss = box_loss = 0.0
        for key, target in zip(keys, targets, strict=True):
            truth, (logits, centres, boxes) = target.gt_boxes.tensor, self.predict(key)
            inside = (centres[:, None] > truth[:, :2]) & (centres[:, None] < truth[:, 2:])
            position, number = inside.all(dim=2).nonzero(as_tuple=True)
            wanted = torch.zeros_like(logits)
            wanted[position, target.gt_classes[number]] = 1
            cls_loss += sigmoid_focal_loss(logits, wanted, reduction="mean") / len(keys)
            box_loss += giou_loss(boxes[position], truth[number], "mean") / len(keys)
        return {"loss_cls": cls_loss, "loss_box": box_loss}

    def detect(self, key, references):
        logits, _, boxes = self.predict(key)
        scores, classes = logits.sigmoid().max(dim=1)
        best = batched_nms(boxes, scores, classes, 0.5)[:100]
        fields = {"pred_boxes": Boxes(boxes), "scores": scores, "pred_classes": classes}
        return Instances(key.image_size, **fields)[best]
