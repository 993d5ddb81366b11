"""ROI heads that aggregate over frames: pooling, aggregation, prediction."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, build_box_head
from detectron2.structures import Instances
from torch import Tensor

from clab_d2.errors import ConfigError
from clab_d2.layers.roi_pooling import FastROIPooler
from clab_d2.modeling.aggregation.selsa import KeyValue, SELSABoxHead, log_counts_of
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.reference_memory import FrameFeatures, References


@ROI_HEADS_REGISTRY.register()
class TemporalROIHeads(ROIHeads):
    """Box head over RoIs of the key frame, aggregated over reference frames.

    Temporal RoI Align (if any) aggregates the key frame's RoI features, SELSA (if any) the
    features after each FC layer. With neither, it is Detectron2's single-frame box head.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: FastROIPooler,
        temporal_roi_align: TemporalRoIAlign | None,
        box_head: SELSABoxHead,
        box_predictor: FastRCNNOutputLayers,
        **kwargs: object,
    ) -> None:
        """
        Args:
            in_features: feature levels that RoIs are pooled from.
            pooler: plain RoIAlign over these levels.
            temporal_roi_align: None for plain RoIAlign.
            box_head: FC layers, with or without SELSA blocks.
            box_predictor: class scores and box deltas.
            kwargs: :class:`ROIHeads` arguments (sampling of training RoIs).
        """
        super().__init__(**kwargs)
        self.in_features = list(in_features)
        self.pooler = pooler
        self.temporal_roi_align = temporal_roi_align
        self.box_head = box_head
        self.box_predictor = box_predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        arguments = super().from_config(cfg)
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        sampling_ratio = cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO
        channels = {input_shape[name].channels for name in in_features}
        if len(channels) != 1:
            raise ConfigError(
                f"MODEL.ROI_HEADS.IN_FEATURES {in_features} differ in channels; "
                "choose levels of one pyramid"
            )
        (num_channels,) = channels
        troia = cfg.MODEL.TEMPORAL_ROI_ALIGN
        if troia.ENABLED and (
            sampling_ratio <= 0 or cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE != "ROIAlignV2"
        ):
            raise ConfigError(
                "MODEL.TEMPORAL_ROI_ALIGN needs MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignV2 and a "
                "positive POOLER_SAMPLING_RATIO (the release uses 2)"
            )
        box_head = build_box_head(
            cfg, ShapeSpec(channels=num_channels, height=resolution, width=resolution)
        )
        arguments.update(
            in_features=in_features,
            pooler=FastROIPooler(
                output_size=resolution,
                scales=[1.0 / input_shape[name].stride for name in in_features],
                sampling_ratio=sampling_ratio,
                pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            ),
            temporal_roi_align=TemporalRoIAlign(
                num_channels, num_most_similar=troia.NUM_MOST_SIMILAR, num_heads=troia.NUM_HEADS
            )
            if troia.ENABLED
            else None,
            box_head=box_head,
            box_predictor=FastRCNNOutputLayers(cfg, box_head.output_shape),
        )
        return arguments

    @property
    def aggregates(self) -> bool:
        """Whether detections in a key frame depend on reference frames."""
        return self.box_head.aggregates or self.temporal_roi_align is not None

    def pool(self, frame: FrameFeatures, proposals: Instances) -> Tensor:
        """Plain RoIAlign of a frame's maps, (R, C, S, S)."""
        return self.pooler(
            [frame.features[name] for name in self.in_features], [proposals.proposal_boxes]
        )

    def encode_references(self, frames: Sequence[FrameFeatures]) -> list[list[KeyValue]]:
        """Keys and values of each frame's proposals for every SELSA block (none without SELSA)."""
        if not self.box_head.aggregates:
            return [[] for _ in frames]
        pooled = torch.cat([self.pool(frame, frame.proposals) for frame in frames])
        lengths = [len(frame.proposals) for frame in frames]
        encoded = self.box_head.encode_references(pooled)
        per_block = [
            [
                KeyValue(keys, values)
                for keys, values in zip(
                    block.keys.split(lengths, dim=1),
                    block.values.split(lengths, dim=1),
                    strict=True,
                )
            ]
            for block in encoded
        ]
        return [list(blocks) for blocks in zip(*per_block, strict=True)]

    def predict(
        self, frame: FrameFeatures, proposals: Instances, references: References
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, classes + 1) and box deltas (R, 4 or 4 * classes) of one key frame.

        Args:
            frame: the key frame.
            proposals: R RoIs of it.
            references: frames to aggregate over, encoded.
        """
        pooled = self.pool(frame, proposals)
        if self.temporal_roi_align is not None:
            pooled = self._align_over_frames(pooled, frame, proposals, references)
        if not self.box_head.aggregates:
            return self.box_predictor(self.box_head(pooled))
        lengths = [reference.encoded[0].keys.shape[1] for reference in references.frames]
        blocks = [
            KeyValue(
                references.cat((index, "keys"), [keys for keys, _ in parts], dim=1),
                references.cat((index, "values"), [values for _, values in parts], dim=1),
            )
            for index, parts in enumerate(zip(*(f.encoded for f in references.frames), strict=True))
        ]
        log_counts = log_counts_of(references.counts, lengths, pooled)
        return self.box_predictor(self.box_head(pooled, blocks, log_counts))

    def _align_over_frames(
        self, pooled: Tensor, frame: FrameFeatures, proposals: Instances, references: References
    ) -> Tensor:
        """Temporal RoI Align, each RoI on the level that it was pooled from."""
        assert self.temporal_roi_align is not None
        boxes = proposals.proposal_boxes
        levels = self.pooler.levels_of(boxes)
        aligned = pooled
        for level, name in enumerate(self.in_features):
            chosen = (levels == level).nonzero().flatten()
            if len(chosen) == 0:
                continue
            result = self.temporal_roi_align(
                pooled[chosen],
                boxes.tensor[chosen],
                frame.features[name][0],
                [reference.features[name][0] for reference in references.frames],
                references.counts,
                cat=functools.partial(references.cat, name),
                scale=self.pooler.scales[level],
                sampling_ratio=self.pooler.sampling_ratio,
            )
            if len(chosen) == len(pooled):
                return result
            aligned = aligned.index_copy(0, chosen, result.to(aligned.dtype))
        return aligned

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
        logits = torch.cat([scores for scores, _ in predictions])
        deltas = torch.cat([delta for _, delta in predictions])
        # In mixed precision scores of three digits would tie, and ties cost precision.
        precise = torch.promote_types(logits.dtype, torch.float32)
        logits, deltas = logits.to(precise), deltas.to(precise)
        if self.training:
            return [], self.box_predictor.losses((logits, deltas), list(proposals))
        instances, _ = self.box_predictor.inference((logits, deltas), list(proposals))
        return instances, {}
