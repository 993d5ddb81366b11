"""TemporalRCNN: a two-stage detector that aggregates over the frames of a video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
    detector_postprocess,
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from clab_d2.errors import ConfigError, DataError
from clab_d2.modeling.backbones.resnet_dc5 import checkpoint_activations, fix_batch_norm_statistics
from clab_d2.modeling.contrastive.branch import ContrastiveBranch
from clab_d2.modeling.optimize import autocast_to
from clab_d2.modeling.reference_memory import FrameFeatures, ReferenceMemory, References
from clab_d2.modeling.rpn import TemporalRPN
from clab_d2.modeling.temporal_roi_heads import TemporalROIHeads

Clip = dict[str, Any]


@META_ARCH_REGISTRY.register()
class TemporalRCNN(nn.Module):
    """Faster R-CNN whose ROI heads aggregate over reference frames, with CLAB's training branch.

    A clip, the unit of input, is a dict:

    * ``image``: (3, H, W), the key frame, in INPUT.FORMAT's channel order, 0..255;
      at test None if it could not be read;
    * ``height``, ``width``: size that detections are scaled to (test);
    * ``dataset_name``, ``video_id``, ``frame_id``: where the key frame belongs;
    * ``reference_frame_ids``: frames to aggregate over, repeats included;
    * ``reference_images``: by frame number, the images of those frames: in training of all but
      the key frame, at test of those that the model has not been given for this video yet
      (None: unreadable);
    * ``instances``: ground truth of the key frame (training).

    At test the clips of a video come in order, and a batch holds frames of one video only.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: TemporalRPN,
        roi_heads: TemporalROIHeads,
        contrastive_branch: ContrastiveBranch | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        frames_per_batch: int = 1,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            backbone: image -> feature maps.
            proposal_generator: RPN.
            roi_heads: second stage.
            contrastive_branch: CLAB's branch; None trains without it.
            pixel_mean, pixel_std: normalisation, one number a channel.
            frames_per_batch: at test, frames that go through the backbone together.
            precision: at test, "fp32", or "bf16" or "fp16" for autocast.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.contrastive_branch = contrastive_branch
        self.frames_per_batch = frames_per_batch
        self.precision = precision
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.memory = ReferenceMemory()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        backbone = build_backbone(cfg)
        if cfg.MODEL.BACKBONE.FIX_BN_STATISTICS:
            fix_batch_norm_statistics(backbone)
        if cfg.MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS:
            checkpoint_activations(backbone)
        shapes = backbone.output_shape()
        branch = None
        if cfg.MODEL.CONTRASTIVE.ENABLED:
            name = cfg.MODEL.CONTRASTIVE.IN_FEATURE
            tappable = {**_bottom_up_shapes(backbone), **shapes}
            if name not in tappable:
                raise ConfigError(
                    f"MODEL.CONTRASTIVE.IN_FEATURE {name!r} is not computed by the backbone; "
                    f"choose one of {sorted(tappable)}"
                )
            branch = ContrastiveBranch(cfg, tappable[name])
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "contrastive_branch": branch,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "frames_per_batch": cfg.TEST.KEY_FRAMES_PER_BATCH,
            "precision": cfg.TEST.PRECISION,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def aggregates(self) -> bool:
        """Whether detections in a key frame depend on reference frames."""
        return self.roi_heads.aggregates

    def train(self, mode: bool = True) -> TemporalRCNN:
        self.memory.clear()  # features of old weights
        return super().train(mode)

    def forward(self, clips: list[Clip]) -> list[dict[str, Instances]] | dict[str, Tensor]:
        """
        Args:
            clips: see the class.

        Returns:
            In training a dict of losses; at test ``{"instances": Instances}`` for each clip, with
            ``pred_boxes``, ``scores`` and ``pred_classes``, at the clip's ``height`` x ``width``.
        """
        if self.training:
            return self.losses(clips)
        return self.inference(clips)

    # ---------------------------------------------------------------- shared by both

    def preprocess(self, images: Sequence[Tensor]) -> ImageList:
        """Normalise, then zero-pad to the backbone's divisibility, in this order
        (docs/method.md, 'The detector')."""
        normalised = [
            (image.to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
            for image in images
        ]
        return ImageList.from_tensors(
            normalised,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _same_size_groups(self, images: Sequence[Tensor]) -> Iterator[list[int]]:
        """Indices of images that pad to the same size.

        Images go through the network with others of their own padded size only, so that a clip's
        result does not depend on what else is in the batch, and nothing is spent on padding.
        """
        divisibility = max(self.backbone.size_divisibility, 1)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            height, width = (-(-side // divisibility) for side in image.shape[-2:])
            groups.setdefault((height, width), []).append(index)
        yield from groups.values()

    # ---------------------------------------------------------------- training

    def losses(self, clips: list[Clip]) -> dict[str, Tensor]:
        """Losses of N clips; see :meth:`forward`."""
        frames = _DistinctFrames(clips)
        targets = [clip["instances"].to(self.device) for clip in clips]
        weight = self._contrastive_weight()
        first_stage = self._first_stage(frames, targets, embed=weight > 0)
        losses = {**first_stage.losses, **self._roi_losses(clips, frames, first_stage, targets)}
        if self.contrastive_branch is not None:
            losses["loss_contrastive"] = self._contrastive_loss(
                clips, frames, first_stage.embeddings, weight
            )
        return losses

    def _first_stage(
        self, frames: _DistinctFrames, targets: Sequence[Instances], embed: bool
    ) -> _FirstStage:
        """Backbone, contrastive embeddings and RPN, on key and reference frames together.

        Args:
            frames: of all clips.
            targets: ground truth of each clip's key frame.
            embed: whether the contrastive branch takes part.
        """
        result = _FirstStage()
        as_reference = frames.reference_indices() if self.aggregates else set()
        for group in self._same_size_groups(frames.images):
            images = self.preprocess([frames.images[index] for index in group])
            with self._tap() as tapped:
                maps = self.backbone(images.tensor)
            place = {index: position for position, index in enumerate(group)}
            for index, position in place.items():
                result.features[index] = {
                    name: m[position : position + 1] for name, m in maps.items()
                }
            if embed:
                assert self.contrastive_branch is not None
                name = self.contrastive_branch.in_feature
                source = maps if name in maps else tapped[0]
                embeddings = self.contrastive_branch.embed(source[name])
                result.embeddings.update(zip(group, embeddings, strict=True))

            clips = [number for number, index in enumerate(frames.keys) if index in place]
            if clips:
                rows = [place[frames.keys[number]] for number in clips]
                proposals, losses = self.proposal_generator(
                    _take_images(images, rows),
                    {name: _take(m, rows) for name, m in maps.items()},
                    [targets[number] for number in clips],
                )
                result.key_proposals.update(zip(clips, proposals, strict=True))
                for name, value in losses.items():
                    # Each group's loss is a mean over its clips.
                    share = value * (len(clips) / len(frames.keys))
                    result.losses[name] = result.losses.get(name, 0) + share
            rows = [position for index, position in place.items() if index in as_reference]
            if rows:
                proposals = self.proposal_generator.propose(
                    _take_images(images, rows), {name: _take(m, rows) for name, m in maps.items()}
                )
                result.reference_proposals.update(
                    zip((group[row] for row in rows), proposals, strict=True)
                )
        return result

    def _roi_losses(
        self,
        clips: Sequence[Clip],
        frames: _DistinctFrames,
        first_stage: _FirstStage,
        targets: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """Losses of the ROI heads, each key frame aggregating over its references."""
        references = {
            index: FrameFeatures(first_stage.features[index], proposals)
            for index, proposals in first_stage.reference_proposals.items()
        }
        if references:
            encoded = self.roi_heads.encode_references(list(references.values()))
            for frame, keys_values in zip(references.values(), encoded, strict=True):
                frame.encoded = keys_values
        proposals = [first_stage.key_proposals[number] for number in range(len(clips))]
        _, losses = self.roi_heads(
            [
                FrameFeatures(first_stage.features[index], proposal)
                for index, proposal in zip(frames.keys, proposals, strict=True)
            ],
            proposals,
            [
                frames.references_of(number, clip["reference_frame_ids"], references)
                for number, clip in enumerate(clips)
            ],
            targets,
        )
        return losses

    def _contrastive_weight(self) -> float:
        """The branch's weight at this iteration, which Detectron2's event storage knows and a
        resumed training restores."""
        if self.contrastive_branch is None:
            return 0.0
        storage = get_event_storage()
        weight = self.contrastive_branch.weight_at(storage.iter)
        storage.put_scalar("contrastive/weight", weight, smoothing_hint=False)
        return weight

    def _contrastive_loss(
        self,
        clips: Sequence[Clip],
        frames: _DistinctFrames,
        embeddings: Mapping[int, Tensor],
        weight: float,
    ) -> Tensor:
        assert self.contrastive_branch is not None
        if weight == 0:
            return self.contrastive_branch.zero_loss()
        # Key frames first, then the references clip by clip; a repeated frame counts each time.
        ordered = [(number, clip["frame_id"]) for number, clip in enumerate(clips)]
        ordered += [
            (number, frame_id)
            for number, clip in enumerate(clips)
            for frame_id in clip["reference_frame_ids"]
        ]
        chosen = [embeddings[frames.index_of[pair]] for pair in ordered]
        loss = self.contrastive_branch(torch.stack(chosen), [number for number, _ in ordered])
        get_event_storage().put_scalar("contrastive/loss", loss.item())
        return loss * weight

    @contextmanager
    def _tap(self) -> Iterator[list[dict[str, Tensor]]]:
        """Collects the bottom-up network's outputs, where the branch needs one that the backbone
        (a feature pyramid, say) does not return."""
        collected: list[dict[str, Tensor]] = []
        branch = self.contrastive_branch
        if branch is None or branch.in_feature in self.backbone.output_shape():
            yield collected
            return
        handle = self.backbone.bottom_up.register_forward_hook(
            lambda module, arguments, output: collected.append(output)
        )
        try:
            yield collected
        finally:
            handle.remove()

    # ---------------------------------------------------------------- inference

    @torch.no_grad()
    def inference(self, clips: list[Clip], postprocess: bool = True) -> list[dict[str, Instances]]:
        """Detections in the key frames of clips whose videos come frame by frame, in order.

        Args:
            clips: see the class.
            postprocess: scale boxes to the clip's ``height`` x ``width``; else to the image given.
        """
        results = []
        for video, batch in groupby(
            clips, key=lambda clip: (clip.get("dataset_name"), clip.get("video_id"))
        ):
            with autocast_to(self.precision, self.device):
                results += self._detect_in_video(video, list(batch), postprocess)
        return results

    def _detect_in_video(
        self, video: tuple[object, ...], clips: list[Clip], postprocess: bool
    ) -> list[dict[str, Instances]]:
        self.memory.begin(video, clips[0]["frame_id"])
        self._remember(clips)
        results = []
        for clip in clips:
            frame = self.memory.get(clip["frame_id"])
            if frame is None:
                instances = _no_detections((clip["height"], clip["width"]), self.device)
            else:
                references = self.memory.references(clip["reference_frame_ids"])
                (instances,), _ = self.roi_heads([frame], [frame.proposals], [references])
                if postprocess:
                    instances = detector_postprocess(instances, clip["height"], clip["width"])
            results.append({"instances": instances})
        # A window only moves forward: what the last key frame did not need is not needed again.
        self.memory.keep_only(clips[-1]["reference_frame_ids"])
        return results

    def _remember(self, clips: Sequence[Clip]) -> None:
        """Compute the features of all frames that came with these clips, once each."""
        images: dict[int, Tensor] = {}
        for clip in clips:
            given = {clip["frame_id"]: clip["image"], **clip.get("reference_images", {})}
            for frame_id, image in given.items():
                if frame_id in self.memory:
                    continue
                if image is None:
                    self.memory.put(frame_id, None)
                else:
                    images[frame_id] = image
        frame_ids = list(images)
        for group in self._same_size_groups(list(images.values())):
            for start in range(0, len(group), self.frames_per_batch):
                part = group[start : start + self.frames_per_batch]
                chosen = [frame_ids[index] for index in part]
                frames = self.extract([images[frame_id] for frame_id in chosen])
                for frame_id, frame in zip(chosen, frames, strict=True):
                    self.memory.put(frame_id, frame)

    def extract(self, images: Sequence[Tensor]) -> list[FrameFeatures]:
        """Everything that depends on each frame alone, for frames of one padded size.

        Args:
            images: (3, H, W) each.
        """
        batch = self.preprocess(images)
        maps = self.backbone(batch.tensor)
        proposals = self.proposal_generator.propose(batch, maps)
        wanted = self.roi_heads.in_features
        frames = [
            FrameFeatures(
                features={
                    # A copy of its own, too: a slice would keep the whole batch's maps.
                    name: maps[name][index : index + 1].clone(memory_format=torch.channels_last)
                    for name in wanted
                },
                proposals=proposals[index],
            )
            for index in range(len(images))
        ]
        for frame, encoded in zip(frames, self.roi_heads.encode_references(frames), strict=True):
            frame.encoded = encoded
        return frames


@dataclass
class _FirstStage:
    """What a training step computes of single frames.

    Attributes:
        features: feature maps by name, for each distinct frame.
        embeddings: of the contrastive branch, for each distinct frame; empty without it.
        key_proposals: for each clip.
        reference_proposals: for each distinct frame that is a reference.
        losses: of the RPN.
    """

    features: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    embeddings: dict[int, Tensor] = field(default_factory=dict)
    key_proposals: dict[int, Instances] = field(default_factory=dict)
    reference_proposals: dict[int, Instances] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)


class _DistinctFrames:
    """The images of a training batch, each once: key frames first, then references.

    A frame that serves a clip twice (both references of a still are the still itself) goes
    through the network once; the result is the same, as no layer mixes images.

    Attributes:
        images: distinct images.
        index_of: index in ``images`` by (clip number, frame number).
        references: (clip number, frame number) of all references.
        keys: for each clip, the index of its key frame.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.images: list[Tensor] = []
        self.index_of: dict[tuple[int, int], int] = {}
        self.references: set[tuple[int, int]] = set()
        for number, clip in enumerate(clips):
            self._add((number, clip["frame_id"]), clip["image"])
        for number, clip in enumerate(clips):
            for frame_id, image in clip.get("reference_images", {}).items():
                self._add((number, frame_id), image)
            for frame_id in clip.get("reference_frame_ids", []):
                if (number, frame_id) not in self.index_of:
                    raise DataError(
                        f"reference frame {frame_id} of clip {clip.get('file_name', number)} "
                        "came without its image"
                    )
                self.references.add((number, frame_id))
        self.keys = [self.index_of[number, clip["frame_id"]] for number, clip in enumerate(clips)]

    def reference_indices(self) -> set[int]:
        """Indices of the images that serve as references."""
        return {self.index_of[pair] for pair in self.references}

    def _add(self, key: tuple[int, int], image: Tensor) -> None:
        if key not in self.index_of:
            self.index_of[key] = len(self.images)
            self.images.append(image)

    def references_of(
        self, number: int, frame_ids: Sequence[int], features: Mapping[int, FrameFeatures]
    ) -> References:
        """What clip ``number`` aggregates over; nothing where no features were made."""
        if not features:
            return References([], [])
        counts = Counter(frame_ids)
        return References(
            [features[self.index_of[number, frame_id]] for frame_id in counts],
            list(counts.values()),
        )


def _bottom_up_shapes(backbone: Backbone) -> dict[str, ShapeSpec]:
    """Feature shapes of the network below a pyramid or neck; none where there is none."""
    bottom_up = getattr(backbone, "bottom_up", None)
    return bottom_up.output_shape() if bottom_up is not None else {}


def _take(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a batch, without a copy where they are contiguous."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return tensor[rows[0] : rows[0] + len(rows)]
    return tensor[list(rows)]


def _take_images(images: ImageList, rows: Sequence[int]) -> ImageList:
    return ImageList(_take(images.tensor, rows), [images.image_sizes[row] for row in rows])


def _no_detections(size: tuple[int, int], device: torch.device) -> Instances:
    return Instances(
        size,
        pred_boxes=Boxes(torch.zeros(0, 4, device=device)),
        scores=torch.zeros(0, device=device),
        pred_classes=torch.zeros(0, dtype=torch.long, device=device),
    )
