"""TemporalRCNN: a two-stage detector that aggregates over the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_proposal_generator, build_roi_heads
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList, Instances
from torch import Tensor

from clab_d2.modeling.frame_groups import joined_maps, same_size
from clab_d2.modeling.reference_memory import FrameFeatures, References
from clab_d2.modeling.roi_heads.temporal_roi_heads import TemporalROIHeads
from clab_d2.modeling.temporal_detector import TemporalDetector

if TYPE_CHECKING:
    from clab_d2.modeling.export.base import ExportGraphs


@META_ARCH_REGISTRY.register()
class TemporalRCNN(TemporalDetector):
    """Faster R-CNN (or Cascade R-CNN, by its ROI heads) that aggregates over reference frames.

    A reference frame contributes the RPN's proposals on its own maps. The key frame's proposals are
    those on its maps as the aggregation on maps, if any, leaves them.
    """

    @configurable
    def __init__(
        self, *, proposal_generator: RPN, roi_heads: TemporalROIHeads, **kwargs: Any
    ) -> None:
        """
        Args:
            proposal_generator: RPN.
            roi_heads: second stage.
            kwargs: those of :class:`TemporalDetector`.
        """
        super().__init__(**kwargs)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg, cls.features_of(cfg))
        shapes = arguments["backbone"].output_shape()
        return {
            **arguments,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
        }

    @property
    def head_needs_references(self) -> bool:
        return self.roi_heads.needs_references

    @property
    def kept_features(self) -> Sequence[str]:
        if self.map_aggregation is not None:
            return super().kept_features
        return self.roi_heads.in_features

    def reference_parts(self, frames: Sequence[FrameFeatures]) -> None:
        """Proposals, and what the ROI heads encode of them."""
        if not self.head_needs_references and self.map_aggregation is not None:
            return  # the maps are all that such a key frame takes of its references
        for group in same_size(frames):
            proposals = self._propose(group)
            for frame, own in zip(group, proposals, strict=True):
                frame.proposals = own
        for frame, encoded in zip(frames, self.roi_heads.encode_references(frames), strict=True):
            frame.encoded = encoded

    @torch.no_grad()
    def _propose(self, frames: Sequence[FrameFeatures]) -> list[Instances]:
        """Proposals by the settings of test time, in training too.

        Proposals carry no gradient, and these frames have no RPN loss, so no graph is kept.
        """
        rpn, was_training = self.proposal_generator, self.proposal_generator.training
        # The flag of this module alone: it chooses the numbers of proposals and leaves out losses.
        rpn.training = False
        try:
            proposals, _ = rpn(*_rpn_input(frames, rpn))
        finally:
            rpn.training = was_training
        return proposals

    def detection_losses(
        self,
        keys: Sequence[FrameFeatures],
        references: Sequence[References],
        targets: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """Losses of the RPN on the key frames and of the ROI heads."""
        losses: dict[str, Tensor] = {}
        proposals: dict[int, Instances] = {}
        target_of = {id(key): target for key, target in zip(keys, targets, strict=True)}
        for group in same_size(keys):
            of_group, group_losses = self.proposal_generator(
                *_rpn_input(group, self.proposal_generator),
                [target_of[id(key)] for key in group],
            )
            proposals.update((id(key), own) for key, own in zip(group, of_group, strict=True))
            for name, value in group_losses.items():
                # Each group's loss is a mean over its clips.
                losses[name] = losses.get(name, 0) + value * (len(group) / len(keys))
        _, roi_losses = self.roi_heads(
            keys, [proposals[id(key)] for key in keys], references, targets
        )
        return {**losses, **roi_losses}

    def detect(self, key: FrameFeatures, references: References) -> Instances:
        """See :meth:`TemporalDetector.detect`."""
        if key.proposals is None:
            (key.proposals,) = self._propose([key])
        (instances,), _ = self.roi_heads([key], [key.proposals], [references])
        return instances

    def export_graphs(self) -> ExportGraphs:
        """See :meth:`TemporalDetector.export_graphs`."""
        from clab_d2.modeling.export.two_stage import export_two_stage

        return export_two_stage(self)


def _rpn_input(
    frames: Sequence[FrameFeatures], rpn: RPN
) -> tuple[ImageList, dict[str, Tensor]]:
    """The maps of frames of one size, as Detectron2's RPN takes them."""
    maps = joined_maps(frames, rpn.in_features)
    # Of the images it takes nothing but their sizes.
    return ImageList(next(iter(maps.values())), [frame.image_size for frame in frames]), maps
