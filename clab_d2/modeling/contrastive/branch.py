"""The auxiliary branch of CLAB: a contrastive loss on a backbone map, and its dynamic weight.

Source: "Contrastive Learning through Auxiliary Branch for Video Object Detection" (ACIVS 2025).
The branch exists in training only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.clip_batch import ClipBatch
from clab_d2.modeling.contrastive.base import (
    ContrastiveFrame,
    ContrastiveLoss,
    build_contrastive_loss,
)
from clab_d2.modeling.contrastive.schedule import contrastive_weight
from clab_d2.modeling.part_results import check_tensor


class ContrastiveBranch(nn.Module):
    """Which map is tapped, what is contrasted on it, and how much that counts over time."""

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        loss: ContrastiveLoss,
        weight_start: float = 0.005,
        weight_steps: int = 25000,
        weight_schedule: str = "linear",
    ) -> None:
        """
        Args:
            in_feature: name of the tapped map (a backbone stage, the neck's output, an FPN level).
            loss: what is contrasted.
            weight_start, weight_steps, weight_schedule: see :func:`contrastive_weight`.
        """
        super().__init__()
        self.in_feature = in_feature
        self.loss = loss
        self.weight_start = weight_start
        self.weight_steps = weight_steps
        self.weight_schedule = weight_schedule
        self.weight_at(0)  # an unknown schedule fails here and not in the first step

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """
        Args:
            cfg: the config.
            shapes: of the maps that can be tapped, by name.
        """
        branch = cfg.MODEL.CONTRASTIVE
        if branch.IN_FEATURE not in shapes:
            raise ConfigError(
                f"MODEL.CONTRASTIVE.IN_FEATURE {branch.IN_FEATURE!r} is not computed by the "
                f"backbone; choose one of {sorted(shapes)}"
            )
        return {
            "in_feature": branch.IN_FEATURE,
            "loss": build_contrastive_loss(cfg, shapes[branch.IN_FEATURE]),
            "weight_start": branch.WEIGHT.START,
            "weight_steps": branch.WEIGHT.STEPS,
            "weight_schedule": branch.WEIGHT.SCHEDULE,
        }

    def weight_at(self, iteration: int) -> float:
        """Weight of the loss at a training iteration; it depends on nothing else, so that a
        resumed training goes on with the right one."""
        return contrastive_weight(
            iteration,
            start=self.weight_start,
            steps=self.weight_steps,
            schedule=self.weight_schedule,
        )

    def current_weight(self) -> float:
        """Weight at this iteration, which Detectron2's event storage knows and a resumed training
        restores; noted there, too."""
        storage = get_event_storage()
        weight = self.weight_at(storage.iter)
        storage.put_scalar("contrastive/weight", weight, smoothing_hint=False)
        return weight

    @contextmanager
    def tap(self, backbone: Backbone) -> Iterator[Callable[[dict[str, Tensor]], Tensor]]:
        """While the backbone runs in this context, get hold of the map that the branch taps.

        It may be one of the bottom-up network that the backbone (a feature pyramid, say) does not
        return.

        Yields:
            Gives the tapped map, from the backbone's maps by name.
        """
        if self.in_feature in backbone.output_shape():
            yield lambda maps: maps[self.in_feature]
            return
        collected: list[dict[str, Tensor]] = []
        handle = backbone.bottom_up.register_forward_hook(
            lambda module, arguments, output: collected.append(output)
        )
        try:
            yield lambda maps: collected[-1][self.in_feature]
        finally:
            handle.remove()

    def batch_loss(self, batch: ClipBatch, tapped: Sequence[Tensor], weight: float) -> Tensor:
        """The weighted loss of a training step, a scalar.

        Args:
            batch: its clips.
            tapped: the tapped map of each of the batch's images, (1, C, h, w); not needed with a
                weight of 0.
            weight: see :meth:`current_weight`.
        """
        if weight == 0:
            return self.zero_loss()
        device = tapped[0].device
        made: dict[int, ContrastiveFrame] = {}
        ordered = []
        for number, frame_id in batch.in_order():
            index = batch.index_of(number, frame_id)
            if index not in made:
                truth, clip = batch.truth(number, frame_id), batch.clips[number]
                made[index] = ContrastiveFrame(
                    feature=tapped[index],
                    image_size=tuple(batch.images[index].shape[-2:]),
                    clip=number,
                    video=(clip.get("dataset_name"), clip.get("video_id")),
                    instances=None if truth is None else truth.to(device),
                )
            ordered.append(made[index])
        loss = self(ordered)
        get_event_storage().put_scalar("contrastive/loss", loss.item())
        return loss * weight

    def forward(self, frames: Sequence[ContrastiveFrame]) -> Tensor:
        """The unweighted loss of a batch, a scalar; see :meth:`ContrastiveLoss.forward`."""
        loss = self.loss(frames)
        check_tensor(self.loss, "forward", loss, (), "the loss, a scalar")
        return loss

    def zero_loss(self) -> Tensor:
        """A loss of 0 that touches every parameter without computing the branch.

        For when the weight has fallen to 0: DistributedDataParallel wants a gradient for every
        parameter in every step.
        """
        zeros = [parameter.sum() * 0.0 for parameter in self.parameters()]
        return torch.stack(zeros).sum() if zeros else torch.zeros(())
