"""The CLAB branch: a contrastive loss on backbone features, and its dynamic weight.

Source: "Contrastive Learning through Auxiliary Branch for Video Object Detection" (ACIVS 2025).
The branch exists in training only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils import comm
from pytorch_metric_learning.losses import NTXentLoss
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor, nn

from clab_d2.errors import ConfigError

SCHEDULES = ("linear", "cosine", "constant")


def contrastive_weight(
    iteration: int, *, start: float, steps: int, schedule: str = "linear"
) -> float:
    """Weight of the contrastive loss at an iteration ("dynamic loss weighting").

    Args:
        iteration: training iteration, from 0.
        start: weight at iteration 0.
        steps: iteration at which "linear" and "cosine" reach 0, to stay there.
        schedule: "linear" (the paper's), "cosine" or "constant".
    """
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"MODEL.CONTRASTIVE.WEIGHT.SCHEDULE {schedule!r} is unknown; choose one of {SCHEDULES}"
        )
    if schedule == "constant":
        return start
    progress = min(iteration / steps, 1.0) if steps > 0 else 1.0
    if schedule == "linear":
        return start * (1.0 - progress)
    return start * 0.5 * (1.0 + math.cos(math.pi * progress))


class NTXent(nn.Module):
    """NT-Xent over the embeddings of all clips on all GPUs.

    Over W processes the value, on each of them, is the loss of the whole batch, and the gradients
    that DistributedDataParallel averages are those of one process with the whole batch: each
    process differentiates the whole loss by its own embeddings only, so pytorch-metric-learning
    scales the loss by W to make up for the averaging; here the scale is kept in the gradient and
    taken out of the value.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.loss = NTXentLoss(temperature=temperature)
        self.distributed_loss = DistributedLossWrapper(self.loss)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            embeddings: (N, D) of this process; N is the same on every process.
            labels: (N,) clip of each embedding, unique over processes.

        Returns:
            Scalar; 0 where there is no negative pair.
        """
        world_size = comm.get_world_size()
        if world_size == 1:
            return self.loss(embeddings, labels)
        scaled = self.distributed_loss(embeddings, labels)
        return scaled - scaled.detach() * (1.0 - 1.0 / world_size)


class ContrastiveBranch(nn.Module):
    """3x3 conv, ReLU, global average pool, and a two-layer projection; NT-Xent over clips."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        in_feature: str,
        conv_dim: int = 512,
        hidden_dim: int = 256,
        embed_dim: int = 128,
        temperature: float = 0.1,
        weight_start: float = 0.005,
        weight_steps: int = 25000,
        weight_schedule: str = "linear",
    ) -> None:
        """
        Args:
            input_shape: shape of the tapped feature.
            in_feature: its name (a backbone stage, the neck's output or an FPN level).
            conv_dim, hidden_dim, embed_dim: channels after the conv, within and after the
                projection.
            temperature: NT-Xent temperature.
            weight_start, weight_steps, weight_schedule: see :func:`contrastive_weight`.
        """
        super().__init__()
        self.in_feature = in_feature
        self.conv = nn.Conv2d(input_shape.channels, conv_dim, 3, padding=1)
        self.projection = nn.Sequential(
            nn.Linear(conv_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, embed_dim),
        )
        self.loss = NTXent(temperature)
        self.weight_start = weight_start
        self.weight_steps = weight_steps
        self.weight_schedule = weight_schedule
        self.weight_at(0)  # an unknown schedule fails here and not in the first step

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        branch = cfg.MODEL.CONTRASTIVE
        return {
            "input_shape": input_shape,
            "in_feature": branch.IN_FEATURE,
            "conv_dim": branch.CONV_DIM,
            "hidden_dim": branch.HIDDEN_DIM,
            "embed_dim": branch.EMBED_DIM,
            "temperature": branch.TEMPERATURE,
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

    def embed(self, features: Tensor) -> Tensor:
        """(N, C, H, W) feature maps of N frames -> (N, embed_dim)."""
        return self.projection(F.relu(self.conv(features)).mean(dim=(2, 3)))

    def forward(self, embeddings: Tensor, clips: Sequence[int]) -> Tensor:
        """
        Args:
            embeddings: (N, embed_dim), the key frames' first, then the references', clip by clip.
            clips: index of each embedding's clip among this process's clips.

        Returns:
            The unweighted loss, a scalar.
        """
        num_clips = max(clips) + 1
        labels = torch.tensor(clips, device=embeddings.device) + comm.get_rank() * num_clips
        # Cosines over a temperature of 0.1 want full precision, whatever the autocast mode.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.float(), labels)

    def zero_loss(self) -> Tensor:
        """A loss of 0 that touches every parameter without computing the branch.

        For when the weight has fallen to 0: DistributedDataParallel wants a gradient for every
        parameter in every step.
        """
        return sum(parameter.sum() * 0.0 for parameter in self.parameters())
