"""Test-time augmentation: the same video at several sizes and mirrored, the detections merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clab_d2.data.clip_augmentation import ClipTransform
from clab_d2.errors import ConfigError
from clab_d2.modeling.reference_memory import ReferenceMemory
from clab_d2.modeling.temporal_detector import TemporalDetector

Clip = dict[str, Any]


class TestTimeAugmentation(nn.Module):
    """A temporal detector that looks at several views of each video.

    Every view has a reference memory of its own, so that frames aggregate over frames of their own
    view. As in Detectron2's ``GeneralizedRCNNWithTTA``, the detections of all views go through
    non-maximum suppression together, class by class. It takes the time of all views together.
    """

    __test__ = False  # pytest: not a test

    def __init__(
        self,
        model: TemporalDetector,
        views: Sequence[ClipTransform],
        nms_threshold: float,
        max_detections: int,
    ) -> None:
        """
        Args:
            model: in evaluation mode.
            views: what is done to the frames of each view.
            nms_threshold: IoU above which the lower score of a class goes.
            max_detections: of a frame.
        """
        super().__init__()
        self.model = model
        self.views = list(views)
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self._memories = [ReferenceMemory() for _ in self.views]

    @property
    def needs_references(self) -> bool:
        """See :class:`TemporalDetector`."""
        return self.model.needs_references

    @property
    def appearance(self) -> nn.Module | None:
        """See :class:`TemporalDetector`."""
        return self.model.appearance

    @torch.no_grad()
    def forward(self, clips: list[Clip]) -> list[dict[str, Any]]:
        """As :meth:`TemporalDetector.inference`."""
        by_view = []
        own = self.model.memory
        try:
            for view, memory in zip(self.views, self._memories, strict=True):
                self.model.memory = memory
                outputs = self.model.inference([_seen(clip, view) for clip in clips])
                by_view.append([_mirrored_back(output, view) for output in outputs])
        finally:
            self.model.memory = own
        return [self._merged(outputs) for outputs in zip(*by_view, strict=True)]

    def _merged(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Detections of one key frame from those of its views."""
        instances = Instances.cat([output["instances"] for output in outputs])
        kept = batched_nms(
            instances.pred_boxes.tensor,
            instances.scores,
            instances.pred_classes,
            self.nms_threshold,
        )
        return {**outputs[0], "instances": instances[kept[: self.max_detections]]}


def with_test_time_augmentation(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """The model, or with ``TEST.AUG.ENABLED`` what looks at it through several views.

    ``TEST.AUG.MIN_SIZES`` are the short sides (at most ``MAX_SIZE`` on the long one); with ``FLIP``
    each size is seen mirrored, too.

    Raises:
        ConfigError: no size is given.
    """
    if not cfg.TEST.AUG.ENABLED:
        return model
    return TestTimeAugmentation(
        model, views_of(cfg), cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
    )


def views_of(cfg: CfgNode) -> list[ClipTransform]:
    """The views that ``TEST.AUG`` asks for.

    Raises:
        ConfigError: no size is given, or one that is none.
    """
    aug = cfg.TEST.AUG
    if not aug.MIN_SIZES or min(aug.MIN_SIZES) < 1:
        raise ConfigError(
            f"TEST.AUG.MIN_SIZES is {list(aug.MIN_SIZES)}; name at least one length in pixels"
        )
    return [
        ClipTransform(size, aug.MAX_SIZE, cfg.INPUT.RESIZE_BACKEND, flip)
        for size in aug.MIN_SIZES
        for flip in (("none", "horizontal") if aug.FLIP else ("none",))
    ]


def _seen(clip: Clip, view: ClipTransform) -> Clip:
    images = {
        frame: None if image is None else _transformed(image, view)
        for frame, image in clip["images"].items()
    }
    return {**clip, "images": images}


def _transformed(image: Tensor, view: ClipTransform) -> Tensor:
    """A frame (3, H, W), uint8, as the view shows it."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    changed = view.for_size(*pixels.shape[:2]).apply_image(pixels)
    return torch.as_tensor(np.ascontiguousarray(changed.transpose(2, 0, 1)))


def _mirrored_back(output: Mapping[str, Any], view: ClipTransform) -> dict[str, Any]:
    """Detections in the frame as it is; their size is the frame's own already."""
    instances = output["instances"]
    if view.flip == "none":
        return dict(output)
    width = instances.image_size[1]
    x1, y1, x2, y2 = instances.pred_boxes.tensor.unbind(dim=1)
    mirrored = Instances(instances.image_size, **instances.get_fields())
    mirrored.pred_boxes = Boxes(torch.stack([width - x2, y1, width - x1, y2], dim=1))
    return {**output, "instances": mirrored}
