"""Which of a frame's predictions go on: the most confident ones that do not repeat each other.

Source: "YOLOV: Making Still Image Object Detectors Great at Video Object Detection" (AAAI 2023),
section 3.2: a few predictions of high quality, chosen after the dense head, stand for the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from clab_d2.errors import ConfigError
from clab_d2.modeling.dense_heads.base import DenseHead, DensePredictions


@dataclass(frozen=True)
class Selection:
    """How many predictions are chosen.

    Attributes:
        num_predictions: of a frame.
        num_candidates: the most confident of each level, before NMS.
        nms_thresh: of two candidates with a higher IoU only the more confident one stays, whatever
            their classes.
        num_per_object: in training, the predictions nearest to each object that come along, if
            their IoU is at least 0.5.
    """

    num_predictions: int = 30
    num_candidates: int = 200
    nms_thresh: float = 0.75
    num_per_object: int = 4

    def __post_init__(self) -> None:
        if self.num_predictions < 1 or self.num_candidates < self.num_predictions:
            raise ConfigError(
                f"MODEL.DENSE.SELECT.NUM {self.num_predictions} must be at least 1, and "
                f"NUM_CANDIDATES {self.num_candidates} no less"
            )
        if not 0 < self.nms_thresh <= 1:
            raise ConfigError(
                f"MODEL.DENSE.SELECT.NMS_THRESH is {self.nms_thresh}; give an IoU above 0, up to 1"
            )

    def __call__(
        self,
        head: DenseHead,
        output: DensePredictions,
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[Instances] | None = None,
    ) -> list[Instances]:
        """Choose predictions of N frames.

        Args:
            head: the head.
            output: what it gave for them.
            image_sizes: (height, width) of each frame's image, without padding.
            targets: ground truth of each frame; None to choose by confidence alone.

        Returns:
            For each frame, most confident first (then those chosen by truth): ``pred_boxes`` and
            ``score_logits`` (M, K), which carry no gradient, and ``cls_features`` and
            ``box_features`` (M, D), which do.
        """
        with torch.no_grad():
            candidates = self._candidates(head, output)
        chosen = []
        for number, image_size in enumerate(image_sizes):
            with torch.no_grad():
                index = self._by_confidence(head, output, candidates[number], number, image_size)
                if targets is not None:
                    near = self._by_truth(head, output, number, targets[number])
                    index = torch.cat([index, near[~torch.isin(near, index)]])
            chosen.append(_gather(head, output, number, index, image_size))
        return chosen

    def _candidates(self, head: DenseHead, output: DensePredictions) -> list[tuple[Tensor, Tensor]]:
        """Scores and numbers, counted over all levels, of each frame's candidates."""
        scores, numbers, start = [], [], 0
        for level in zip(*output.predictions, strict=True):
            best = head.best_scores(level)
            top = best.topk(min(self.num_candidates, best.shape[1]), dim=1)
            scores.append(top.values)
            numbers.append(top.indices + start)
            start += best.shape[1]
        return list(zip(torch.cat(scores, 1), torch.cat(numbers, 1), strict=True))

    def _by_confidence(
        self,
        head: DenseHead,
        output: DensePredictions,
        candidates: tuple[Tensor, Tensor],
        number: int,
        image_size: tuple[int, int],
    ) -> Tensor:
        scores, index = candidates
        boxes = _boxes(head, output, number, index, image_size)
        # Positions in the padding, or a box without extent: nothing to be found there.
        valid = boxes.nonempty()
        scores, index, tensor = scores[valid], index[valid], boxes.tensor[valid]
        same = torch.zeros_like(index)
        kept = batched_nms(tensor, scores, same, self.nms_thresh)
        return index[kept[: self.num_predictions]]

    def _by_truth(
        self, head: DenseHead, output: DensePredictions, number: int, target: Instances
    ) -> Tensor:
        everything = torch.arange(sum(map(len, output.anchors)), device=target.gt_classes.device)
        boxes = _boxes(head, output, number, everything, target.image_size)
        count = min(self.num_per_object, len(boxes))
        near = pairwise_iou(target.gt_boxes, boxes).topk(count, dim=1)
        return near.indices[near.values >= 0.5].unique()


def _boxes(
    head: DenseHead,
    output: DensePredictions,
    number: int,
    index: Tensor,
    image_size: tuple[int, int],
) -> Boxes:
    """Boxes of predictions of frame ``number``, within its image."""
    deltas = _rows([level[number] for level in output.predictions[1]], index)
    anchors = _rows([boxes.tensor for boxes in output.anchors], index)
    boxes = Boxes(head.decode(deltas, anchors))
    boxes.clip(image_size)
    return boxes


def _rows(levels: Sequence[Tensor], index: Tensor) -> Tensor:
    """Rows of levels, counted one level after the other."""
    return (levels[0] if len(levels) == 1 else torch.cat(list(levels)))[index]


def _gather(
    head: DenseHead,
    output: DensePredictions,
    number: int,
    index: Tensor,
    image_size: tuple[int, int],
) -> Instances:
    with torch.no_grad():
        boxes = _boxes(head, output, number, index, image_size)
        predictions = [_rows([x[number] for x in part], index) for part in output.predictions]
        score_logits = head.score_logits(predictions)
    positions, start, first = torch.empty_like(index), 0, 0
    for anchors, towers in zip(output.anchors, output.towers, strict=True):
        num_positions = towers.cls.shape[-2] * towers.cls.shape[-1]
        per_position = len(anchors) // num_positions
        on_level = (index >= start) & (index < start + len(anchors))
        here = first + (index - start).div(per_position, rounding_mode="floor")
        positions = torch.where(on_level, here, positions)
        start, first = start + len(anchors), first + num_positions
    cls = [level.cls[number].flatten(1).T for level in output.towers]
    box = [level.box[number].flatten(1).T for level in output.towers]
    return Instances(
        image_size,
        pred_boxes=boxes,
        score_logits=score_logits,
        cls_features=_rows(cls, positions),
        box_features=_rows(box, positions),
    )
