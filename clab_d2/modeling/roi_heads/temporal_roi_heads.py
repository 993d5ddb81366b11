"""ROI heads that aggregate over frames: pooling, aggregation, prediction."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, build_box_head
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.layers.roi_pooling import FastROIPooler
from clab_d2.modeling.aggregation.base import RoIAggregation, build_roi_aggregation
from clab_d2.modeling.part_results import check_tensor
from clab_d2.modeling.reference_memory import FrameFeatures, References
from clab_d2.modeling.roi_heads.box_head import TemporalBoxHead


@ROI_HEADS_REGISTRY.register()
class TemporalROIHeads(ROIHeads):
    """Box head over RoIs of the key frame, aggregated over reference frames.

    An aggregation on RoI features (Temporal RoI Align, say) and one after each FC layer of the box
    head (SELSA, say) are each there or not. With neither, it is Detectron2's single-frame head.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: FastROIPooler,
        roi_aggregation: RoIAggregation | None,
        box_head: TemporalBoxHead,
        box_predictor: FastRCNNOutputLayers,
        **kwargs: object,
    ) -> None:
        """
        Args:
            in_features: feature levels that RoIs are pooled from.
            pooler: plain RoIAlign over these levels.
            roi_aggregation: on RoI features; None for plain RoIAlign.
            box_head: FC layers, with or without aggregations.
            box_predictor: class scores and box deltas.
            kwargs: :class:`ROIHeads` arguments (sampling of training RoIs).
        """
        super().__init__(**kwargs)
        self.in_features = list(in_features)
        self.pooler = pooler
        self.roi_aggregation = roi_aggregation
        self.box_head = box_head
        self.box_predictor = box_predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        channels = _channels_of(cfg.MODEL.ROI_HEADS.IN_FEATURES, input_shape)
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        box_head = cls.build_box_head(
            cfg, ShapeSpec(channels=channels, height=resolution, width=resolution)
        )
        return {
            **super().from_config(cfg),
            "in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "pooler": FastROIPooler(
                output_size=resolution,
                scales=[1.0 / input_shape[f].stride for f in cfg.MODEL.ROI_HEADS.IN_FEATURES],
                sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
                pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            ),
            "roi_aggregation": build_roi_aggregation(cfg, channels),
            "box_head": box_head,
            "box_predictor": cls.build_box_predictor(cfg, box_head),
        }

    @classmethod
    def build_box_head(cls, cfg: CfgNode, shape: ShapeSpec) -> nn.Module:
        """The box head of ``MODEL.ROI_BOX_HEAD`` for RoI features of a shape; a subclass may have
        another, or several."""
        return build_box_head(cfg, shape)

    @classmethod
    def build_box_predictor(cls, cfg: CfgNode, box_head: nn.Module) -> nn.Module:
        """What predicts from the features of :meth:`build_box_head`'s."""
        return FastRCNNOutputLayers(cfg, box_head.output_shape)

    @property
    def box_heads(self) -> list[TemporalBoxHead]:
        """All box heads."""
        return [self.box_head]

    @property
    def needs_references(self) -> bool:
        """Whether detections in a key frame depend on reference frames."""
        parts: list[nn.Module | None] = [*self.box_heads, self.roi_aggregation]
        return any(part is not None and part.needs_references for part in parts)

    # ---------------------------------------------------------------- references

    def encode_references(self, frames: Sequence[FrameFeatures]) -> list[Any]:
        """What each frame's proposals contribute where the frame is a reference: for each FC layer
        what its aggregation encodes; empty without such aggregations."""
        if not self.box_head.needs_references:
            return [[] for _ in frames]
        return self.encode_by_frame(self.box_head, *self.pool_proposals(frames))

    def pool_proposals(self, frames: Sequence[FrameFeatures]) -> tuple[Tensor, list[int]]:
        """Plain RoIAlign of frames' own proposals.

        Returns:
            (M, C, S, S), one frame after the other, and how many each has.
        """
        pooled = torch.cat([self.pool(frame, frame.proposals.proposal_boxes) for frame in frames])
        return pooled, [len(frame.proposals) for frame in frames]

    @staticmethod
    def encode_by_frame(
        box_head: TemporalBoxHead, pooled: Tensor, lengths: Sequence[int]
    ) -> list[list[list[Tensor]]]:
        """A box head's encoding of reference RoIs, taken apart by frame.

        Args:
            box_head: the head.
            pooled: (M, C, S, S) RoI features of several frames, one frame after the other.
            lengths: how many RoIs each of them has.

        Returns:
            By frame, then by FC layer, the encoded tensors.
        """
        by_layer = [
            [tensor.split(list(lengths), dim=-2) for tensor in layer]
            for layer in box_head.encode_references(pooled)
        ]
        return [
            [[parts[number] for parts in layer] for layer in by_layer]
            for number in range(len(lengths))
        ]

    @staticmethod
    def join_frames(
        name: object, encoded: Sequence[Sequence[Sequence[Tensor]]], references: References
    ) -> list[list[Tensor]]:
        """The opposite of :meth:`encode_by_frame`: by FC layer, the tensors of all frames.

        Args:
            name: tells what is joined from what else is, in the references' memory.
            encoded: of each reference frame.
            references: the frames.
        """
        return [
            [
                references.cat((name, index, number), parts, dim=-2)
                for number, parts in enumerate(zip(*layer, strict=True))
            ]
            for index, layer in enumerate(zip(*encoded, strict=True))
        ]

    # ---------------------------------------------------------------- one key frame

    def pool(self, frame: FrameFeatures, boxes: Boxes) -> Tensor:
        """Plain RoIAlign of a frame's maps, (R, C, S, S)."""
        return self.pooler([frame.features[name] for name in self.in_features], [boxes])

    def aggregated_pool(
        self, frame: FrameFeatures, boxes: Boxes, references: References
    ) -> Tensor:
        """RoIAlign and the aggregation on RoI features, each RoI on the level that it is pooled
        from, (R, C, S, S)."""
        pooled = self.pool(frame, boxes)
        if self.roi_aggregation is None:
            return pooled
        levels = self.pooler.levels_of(boxes)
        aligned = pooled
        for level, name in enumerate(self.in_features):
            chosen = (levels == level).nonzero().flatten()
            if len(chosen) == 0:
                continue
            result = self.roi_aggregation(
                pooled[chosen],
                boxes.tensor[chosen],
                frame.features[name][0],
                [reference.features[name][0] for reference in references.frames],
                references.counts,
                cat=functools.partial(references.cat, name),
                scale=self.pooler.scales[level],
                sampling_ratio=self.pooler.sampling_ratio,
                **self._encoded_maps(name, references),
            )
            check_tensor(
                self.roi_aggregation, "forward", result, (len(chosen), *pooled.shape[1:]),
                "(R, C, S, S), as roi_features",
            )  # fmt: skip
            if len(chosen) == len(pooled):
                return result
            aligned = aligned.index_copy(0, chosen, result.to(aligned.dtype))
        return aligned

    def _encoded_maps(self, name: str, references: References) -> dict[str, list[Any]]:
        """What the aggregation on RoI features keeps of the references' maps of a name, as its
        argument; none in training, or where it keeps nothing."""
        assert self.roi_aggregation is not None
        if torch.is_grad_enabled():
            return {}
        for frame in references.frames:
            if name not in frame.encoded_maps:
                feature = frame.features[name][0]
                frame.encoded_maps[name] = self.roi_aggregation.encode_map(feature)
        encoded = [frame.encoded_maps[name] for frame in references.frames]
        return {} if any(part is None for part in encoded) else {"encoded": encoded}

    def predict(
        self, frame: FrameFeatures, proposals: Instances, references: References
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, classes + 1) and box deltas (R, 4 or 4 * classes) of one key frame.

        Args:
            frame: the key frame.
            proposals: R RoIs of it.
            references: frames to aggregate over, encoded.
        """
        pooled = self.aggregated_pool(frame, proposals.proposal_boxes, references)
        encoded = [reference.encoded for reference in references.frames]
        return self.box_predictor(
            self.box_features("box head", self.box_head, pooled, encoded, references)
        )

    @classmethod
    def box_features(
        cls,
        name: object,
        box_head: TemporalBoxHead,
        pooled: Tensor,
        encoded: Sequence[Sequence[Sequence[Tensor]]],
        references: References,
    ) -> Tensor:
        """What a box head makes of a key frame's RoIs, (R, D).

        Args:
            name: of the head, for the references' memory.
            box_head: the head.
            pooled: (R, C, S, S) RoI features.
            encoded: of each reference frame, what :meth:`encode_by_frame` gave by this head.
            references: the frames.
        """
        if not box_head.needs_references:
            return box_head(pooled)
        joined = cls.join_frames(name, encoded, references)
        return box_head(pooled, joined, references.counts_of_proposals(pooled))

    def forward(
        self,
        frames: Sequence[FrameFeatures],
        proposals: Sequence[Instances],
        references: Sequence[References],
        targets: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            frames: key frames of N clips.
            proposals: their RoIs.
            references: for each, the encoded frames it aggregates over.
            targets: ground truth, in training.

        Returns:
            Detections of each key frame (empty list in training), losses (empty at test).
        """
        if self.training:
            assert targets is not None, "ground truth is needed in training"
            proposals = self.label_and_sample_proposals(list(proposals), list(targets))
        predictions = [
            self.predict(frame, proposal, reference)
            for frame, proposal, reference in zip(frames, proposals, references, strict=True)
        ]
        outputs = in_single_precision(predictions)
        if self.training:
            return [], self.box_predictor.losses(outputs, list(proposals))
        instances, _ = self.box_predictor.inference(outputs, list(proposals))
        return instances, {}


def in_single_precision(predictions: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits and deltas of several key frames, joined, in single precision at least: in mixed
    precision scores of three digits would tie, and ties cost precision."""
    logits = torch.cat([scores for scores, _ in predictions])
    deltas = torch.cat([delta for _, delta in predictions])
    precise = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(precise), deltas.to(precise)


def _channels_of(in_features: Sequence[str], shapes: dict[str, ShapeSpec]) -> int:
    channels = {shapes[name].channels for name in in_features}
    if len(channels) != 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.IN_FEATURES {in_features} differ in channels; "
            "choose levels of one pyramid"
        )
    return channels.pop()
