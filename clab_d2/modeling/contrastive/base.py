"""What a contrastive loss of the training branch is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor, nn

from clab_d2.modeling.contrastive.embedding import RoIEmbedding
from clab_d2.registry import Registry

CONTRASTIVE_LOSS_REGISTRY = Registry("CONTRASTIVE_LOSS", "MODEL.CONTRASTIVE.LOSS")
CONTRASTIVE_LOSS_REGISTRY.__doc__ = """
Losses of the training branch; an entry is called as ``entry(cfg, input_shape)`` with the shape
(channels, stride) of the tapped map, and gives a :class:`ContrastiveLoss`.
"""


@dataclass(eq=False)
class ContrastiveFrame:
    """A frame of a training batch, as a contrastive loss sees it.

    Attributes:
        feature: (1, C, h, w), the map that ``MODEL.CONTRASTIVE.IN_FEATURE`` taps.
        image_size: (height, width) of the image in pixels, without the padding.
        clip: number of the clip that it belongs to, among this process's clips.
        video: tells the video from all others, in every process.
        instances: ground truth: ``gt_boxes`` in pixels of the image, ``gt_classes``, and
            ``gt_tracks``, (N,) identities within the video, -1 where not known. None where it is
            not known at all, which is every reference's case unless the loss
            ``needs_reference_truth``.
    """

    feature: Tensor
    image_size: tuple[int, int]
    clip: int
    video: tuple[object, ...]
    instances: Instances | None = None


class ContrastiveLoss(nn.Module, ABC):
    """What is contrasted with what. Exists in training only, but for its :attr:`appearance`.

    Over several processes the value should be that of the whole batch, and the gradients that
    DistributedDataParallel averages those of one process with the whole batch:
    :mod:`clab_d2.modeling.contrastive.whole_batch` has what that takes.

    Attributes:
        needs_references: whether clips must have reference frames.
        needs_reference_truth: whether references must come with their ground truth.
    """

    needs_references: bool = True
    needs_reference_truth: bool = False

    @property
    def appearance(self) -> RoIEmbedding | None:
        """Embeddings of boxes by which an object can be told from others in other frames, where
        the loss teaches that: they are kept with the trained model, for tracking."""
        return None

    @abstractmethod
    def forward(self, frames: Sequence[ContrastiveFrame]) -> Tensor:
        """
        Args:
            frames: of all clips: key frames first, then the references clip by clip. A frame that
                counts twice (both references of a still are the still) is listed twice, as the
                same object.

        Returns:
            The loss, a scalar, not weighted. Where there is nothing to contrast, 0 that still
            depends on the parameters.
        """


def build_contrastive_loss(cfg: CfgNode, input_shape: ShapeSpec) -> ContrastiveLoss:
    """Build what ``MODEL.CONTRASTIVE.LOSS`` names."""
    name = cfg.MODEL.CONTRASTIVE.LOSS
    return CONTRASTIVE_LOSS_REGISTRY.build(name, ContrastiveLoss, cfg, input_shape)


def map_distinct(
    frames: Sequence[ContrastiveFrame],
    function: Callable[[Tensor, Sequence[ContrastiveFrame]], Sequence[Tensor]],
) -> list[Tensor]:
    """Apply a network to each distinct frame once, frames whose maps have one size together.

    Args:
        frames: see :meth:`ContrastiveLoss.forward`.
        function: (N, C, h, w) maps and their N frames -> N tensors.

    Returns:
        One tensor for each of ``frames``, in their order.
    """
    groups: dict[torch.Size, dict[int, ContrastiveFrame]] = {}
    for frame in frames:
        groups.setdefault(frame.feature.shape, {})[id(frame)] = frame
    results: dict[int, Tensor] = {}
    for group in groups.values():
        members = list(group.values())
        maps = torch.cat([frame.feature for frame in members])
        results.update(zip(group, function(maps, members), strict=True))
    return [results[id(frame)] for frame in frames]
