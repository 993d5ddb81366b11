"""What all temporal detectors share: the frames of a batch, reference memory, training branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from clab_d2.errors import ConfigError, PartError
from clab_d2.modeling.aggregation.base import FrameMaps, MapAggregation, build_map_aggregation
from clab_d2.modeling.backbones.activation_checkpointing import checkpoint_activations
from clab_d2.modeling.backbones.base import bottom_up_of, with_input_format
from clab_d2.modeling.backbones.batch_norm import fix_batch_norm_statistics
from clab_d2.modeling.clip_batch import Clip, ClipBatch
from clab_d2.modeling.clip_drawing import draw_training_clip
from clab_d2.modeling.contrastive.branch import ContrastiveBranch
from clab_d2.modeling.contrastive.embedding import RoIEmbedding
from clab_d2.modeling.optimize import autocast_to
from clab_d2.modeling.part_results import (
    check_aggregated_maps,
    check_backbone_maps,
    check_frame_tensors,
)
from clab_d2.modeling.reference_memory import FrameFeatures, ReferenceMemory, References

if TYPE_CHECKING:
    from clab_d2.modeling.export.base import ExportGraphs


class TemporalDetector(nn.Module, ABC):
    """A detector in videos: frames go through it once each, key frames aggregate over references.

    A clip, the unit of input, is a dict:

    * ``dataset_name``, ``video_id``, ``frame_id``: where the key frame belongs;
    * ``images``: frame number -> (3, H, W), in INPUT.FORMAT's channel order, 0..255. In training
      those of the key frame and of all references; at test those that the model has not been given
      for this video yet (None: unreadable);
    * ``reference_frame_ids``: frames to aggregate over, repeats included;
    * in training ``instances``: frame number -> ground truth, of the key frame and, where known, of
      references;
    * at test ``height``, ``width``: size that detections are scaled to, and ``kept_frame_ids``: of
      the frames given so far, those that a later key frame uses; and ``appearance``, True where
      detections are to come with embeddings (see :attr:`appearance`). All clips of a video agree.

    At test the clips of a video come in order, and a batch holds frames of one video only.

    A subclass says what detection is made of, in four methods: :meth:`reference_parts`,
    :meth:`detection_losses`, :meth:`detect` and :attr:`head_needs_references`.

    Attributes:
        feature_keys: nodes of ``cfg.MODEL`` whose ``IN_FEATURES`` name the maps that it takes.
    """

    feature_keys: tuple[str, ...] = ("RPN", "ROI_HEADS")

    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        map_aggregation: MapAggregation | None,
        contrastive_branch: ContrastiveBranch | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        frames_per_batch: int = 1,
        precision: str = "fp32",
        vis_period: int = 0,
        input_format: str = "RGB",
    ) -> None:
        """
        Args:
            backbone: image -> feature maps.
            in_features: names of the maps that detection takes.
            map_aggregation: on feature maps; None for the key frame's own.
            contrastive_branch: the training branch; None trains without it.
            pixel_mean, pixel_std: normalisation, one number a channel.
            frames_per_batch: at test, frames that go through the backbone together.
            precision: at test, "fp32", or "bf16" or "fp16" for autocast, or "auto" (bf16 where
                the device has units for it).
            vis_period: iterations between two pictures of a training clip; 0 draws none.
            input_format: channel order of the images, "RGB" or "BGR".
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        self.map_aggregation = map_aggregation
        self.contrastive_branch = contrastive_branch
        self.frames_per_batch = frames_per_batch
        self.precision = precision
        self.vis_period = vis_period
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.memory = ReferenceMemory()

    @classmethod
    def from_config(cls, cfg: CfgNode, in_features: Sequence[str]) -> dict[str, Any]:
        """The arguments of all temporal detectors; a subclass adds its own."""
        backbone = _build_backbone(cfg)
        if cfg.MODEL.BACKBONE.FIX_BN_STATISTICS:
            fix_batch_norm_statistics(backbone)
        if cfg.MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS:
            checkpoint_activations(backbone)
        branch = None
        if cfg.MODEL.CONTRASTIVE.ENABLED:
            branch = ContrastiveBranch(cfg, _tappable_shapes(backbone))
        cfg = with_input_format(cfg, backbone)
        shapes = backbone.output_shape()
        missing = [name for name in in_features if name not in shapes]
        if missing:
            raise ConfigError(
                f"{missing[0]!r} of IN_FEATURES is no map of {cfg.MODEL.BACKBONE.NAME}; "
                f"choose among {', '.join(shapes)}"
            )
        return {
            "backbone": backbone,
            "in_features": in_features,
            "map_aggregation": build_map_aggregation(cfg, {n: shapes[n] for n in in_features}),
            "contrastive_branch": branch,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "frames_per_batch": cfg.TEST.KEY_FRAMES_PER_BATCH,
            "precision": cfg.TEST.PRECISION,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @classmethod
    def features_of(cls, cfg: CfgNode) -> list[str]:
        """Names of the maps that a config's detector takes."""
        names = [name for key in cls.feature_keys for name in cfg.MODEL[key].IN_FEATURES]
        return list(dict.fromkeys(names))

    # ---------------------------------------------------------------- what a subclass says

    @property
    @abstractmethod
    def head_needs_references(self) -> bool:
        """Whether what follows the maps uses reference frames."""

    @abstractmethod
    def reference_parts(self, frames: Sequence[FrameFeatures]) -> None:
        """Put into frames what they contribute as references, beside their maps; in place.

        Args:
            frames: with their maps. At test also key frames that no key frame refers to.
        """

    @abstractmethod
    def detection_losses(
        self,
        keys: Sequence[FrameFeatures],
        references: Sequence[References],
        targets: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """Losses of N clips.

        Args:
            keys: their key frames, with aggregated maps.
            references: what each aggregates over.
            targets: ground truth of each.
        """

    @abstractmethod
    def detect(self, key: FrameFeatures, references: References) -> Instances:
        """Detections in one key frame, in pixels of the image that went through the backbone."""

    def export_graphs(self) -> ExportGraphs:
        """The detector as two graphs for other runtimes (docs/export.md).

        Raises:
            ConfigError: it has no such form, as by default, or one of its parts has none.
        """
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {type(self).__name__} can't be exported; derive "
            "export_graphs() for it"
        )

    # ---------------------------------------------------------------- what the rest may ask

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def aggregates(self) -> bool:
        """Whether detections in a key frame depend on reference frames."""
        maps = self.map_aggregation
        return self.head_needs_references or (maps is not None and maps.needs_references)

    @property
    def needs_references(self) -> bool:
        """Whether clips have to come with reference frames, in the mode that the model is in."""
        branch = self.contrastive_branch if self.training else None
        return self.aggregates or (branch is not None and branch.loss.needs_references)

    @property
    def needs_reference_truth(self) -> bool:
        """Whether training makes use of the reference frames' ground truth."""
        branch = self.contrastive_branch
        return branch is not None and branch.loss.needs_reference_truth

    @property
    def appearance(self) -> RoIEmbedding | None:
        """What embeds detections so that an object can be told from others in other frames.

        None unless the contrastive loss teaches that (``MODEL.CONTRASTIVE.LOSS TrackContrast``).
        At test it is computed only for clips that ask for it.
        """
        branch = self.contrastive_branch
        return None if branch is None else branch.loss.appearance

    def train(self, mode: bool = True) -> TemporalDetector:
        self.memory.clear()  # features of old weights
        return super().train(mode)

    def forward(self, clips: list[Clip]) -> list[dict[str, Any]] | dict[str, Tensor]:
        """
        Args:
            clips: see the class.

        Returns:
            In training a dict of losses; at test ``{"instances": Instances}`` for each clip, with
            ``pred_boxes``, ``scores`` and ``pred_classes``, at the clip's ``height`` x ``width``,
            and where the clip asks for it ``appearance``, (N, D) embeddings of length 1;
            ``"unreadable": True`` beside it where the key frame had no image.
        """
        if self.training:
            return self.losses(clips)
        return self.inference(clips)

    # ---------------------------------------------------------------- shared by both

    def preprocess(self, images: Sequence[Tensor]) -> ImageList:
        """Normalise, then zero-pad to the backbone's divisibility: the release's order."""
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

    def aggregate_maps(self, key: FrameFeatures, references: References) -> FrameFeatures:
        """The key frame with maps that take in its references'; itself without such a method."""
        part = self.map_aggregation
        if part is None:
            return key
        own = _frame_maps(key)
        others = [own if frame is key else _frame_maps(frame) for frame in references.frames]
        maps = part(own, others, references.counts)
        check_aggregated_maps(part, maps, key.features)
        return FrameFeatures(dict(maps), key.image_size)

    # ---------------------------------------------------------------- training

    def losses(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Losses of N clips; see :meth:`forward`."""
        batch, branch = ClipBatch(clips), self.contrastive_branch
        weight = 0.0 if branch is None else branch.current_weight()
        frames, tapped = self._training_frames(batch.images, tap=weight > 0)
        if self.aggregates:
            indices = batch.reference_indices()
            self.reference_parts([frames[index] for index in indices])
            by_index = {index: frames[index] for index in indices}
            references = [batch.references_of(number, by_index) for number in range(len(clips))]
        else:
            references = [References([], []) for _ in clips]
        keys = [
            self.aggregate_maps(frames[index], reference)
            for index, reference in zip(batch.keys, references, strict=True)
        ]
        targets = [clip["instances"][clip["frame_id"]].to(self.device) for clip in clips]
        losses = self.detection_losses(keys, references, targets)
        if self.vis_period and get_event_storage().iter % self.vis_period == 0:
            self._draw(clips[0])
        if branch is not None:
            losses["loss_contrastive"] = branch.batch_loss(batch, tapped, weight).to(self.device)
        return losses

    def _draw(self, clip: Clip) -> None:
        """Give a picture of a clip to the event storage, and so to TensorBoard."""
        picture = draw_training_clip(clip, self.input_format == "BGR")
        get_event_storage().put_image("training clip", picture.transpose(2, 0, 1))

    def _training_frames(
        self, images: Sequence[Tensor], tap: bool
    ) -> tuple[list[FrameFeatures], list[Tensor]]:
        """Maps of all frames of a step, and the map of each that the contrastive branch takes.

        Args:
            images: (3, H, W) each.
            tap: whether the branch takes part.
        """
        frames: dict[int, FrameFeatures] = {}
        tapped: dict[int, Tensor] = {}
        branch = self.contrastive_branch if tap else None
        for group in self._same_size_groups(images):
            batch = self.preprocess([images[index] for index in group])
            with nullcontext() if branch is None else branch.tap(self.backbone) as tap_from:
                maps = self._backbone_maps(batch.tensor)
            frames.update(zip(group, self._split(batch, maps), strict=True))
            if branch is not None:
                tapped.update(zip(group, tap_from(maps).split(1), strict=True))
        return [frames[i] for i in range(len(images))], [tapped[i] for i in sorted(tapped)]

    def _backbone_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's maps of (N, 3, H, W)."""
        maps = self.backbone(images)
        check_backbone_maps(self.backbone, maps, images)
        return maps

    def _split(self, batch: ImageList, maps: dict[str, Tensor]) -> list[FrameFeatures]:
        """A batch's maps, taken apart by frame, with what the aggregation on maps encodes."""
        encoding: Sequence[Tensor] = ()
        if self.map_aggregation is not None:
            encoding = self.map_aggregation.encode(batch.tensor, maps)
            check_frame_tensors(self.map_aggregation, "encode", encoding, len(batch))
        return [
            FrameFeatures(
                {name: maps[name][index : index + 1] for name in self.in_features},
                tuple(size),
                [tensor[index : index + 1] for tensor in encoding],
            )
            for index, size in enumerate(batch.image_sizes)
        ]

    # ---------------------------------------------------------------- inference

    @torch.no_grad()
    def inference(self, clips: list[Clip], postprocess: bool = True) -> list[dict[str, Any]]:
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
    ) -> list[dict[str, Any]]:
        self.memory.begin(video, [clip["frame_id"] for clip in clips])
        images = {f: image for clip in clips for f, image in clip["images"].items()}
        with_appearance = bool(clips[0].get("appearance", False))
        self._remember(images, with_appearance)
        results = []
        for clip in clips:
            frame = self.memory.get(clip["frame_id"])
            if frame is None:
                instances = _no_detections((clip["height"], clip["width"]), self.device)
                results.append({"instances": instances, "unreadable": True})
                continue
            references = self.memory.references(clip["reference_frame_ids"])
            if not references.frames and clip["reference_frame_ids"]:  # all of them unreadable
                references = self.memory.references([clip["frame_id"]])
            instances = self.detect(self.aggregate_maps(frame, references), references)
            if with_appearance:
                instances.appearance = self._embed(frame, instances.pred_boxes)
            if postprocess:
                instances = detector_postprocess(instances, clip["height"], clip["width"])
            results.append({"instances": instances})
        self.memory.keep_only(clips[-1]["kept_frame_ids"])
        return results

    def _embed(self, frame: FrameFeatures, boxes: Boxes) -> Tensor:
        """Embeddings of N boxes in a key frame, (N, D), each of length 1."""
        embeddings = self.appearance.embed(frame.appearance_map, [boxes])[0].float()
        frame.appearance_map = None  # a frame is a key frame once
        return F.normalize(embeddings, dim=1)

    def _remember(self, images: Mapping[int, Tensor | None], with_appearance: bool) -> None:
        """Compute the features of frames and keep them.

        Args:
            images: by frame number, (3, H, W); None for an unreadable one.
            with_appearance: see :meth:`extract`.
        """
        for frame_id in [frame_id for frame_id, image in images.items() if image is None]:
            self.memory.put(frame_id, None)
        frame_ids = [frame_id for frame_id, image in images.items() if image is not None]
        for group in self._same_size_groups([images[frame_id] for frame_id in frame_ids]):
            for start in range(0, len(group), self.frames_per_batch):
                chosen = [frame_ids[i] for i in group[start : start + self.frames_per_batch]]
                frames = self.extract([images[frame_id] for frame_id in chosen], with_appearance)
                for frame_id, frame in zip(chosen, frames, strict=True):
                    self.memory.put(frame_id, frame)

    def extract(
        self, images: Sequence[Tensor], with_appearance: bool = False
    ) -> list[FrameFeatures]:
        """Everything that depends on each frame alone, for frames of one padded size.

        Args:
            images: (3, H, W) each.
            with_appearance: also what embeddings of boxes are pooled from.

        Raises:
            ConfigError: the model has no :attr:`appearance`, and is asked for it.
        """
        batch = self.preprocess(images)
        branch = self.contrastive_branch if with_appearance else None
        if with_appearance and self.appearance is None:
            raise ConfigError(
                "the model has no embeddings of objects, which are asked for; train it with "
                "MODEL.CONTRASTIVE.ENABLED True MODEL.CONTRASTIVE.LOSS TrackContrast"
            )
        with nullcontext() if branch is None else branch.tap(self.backbone) as tap_from:
            maps = self._backbone_maps(batch.tensor)
        frames = self._split(batch, maps)
        self.reference_parts(frames)
        if branch is not None:
            for frame, one in zip(frames, self.appearance.maps(tap_from(maps)), strict=True):
                frame.appearance_map = one[None].clone()
        for frame in frames:
            frame.features = {
                # A copy of its own, too: a slice would keep the whole batch's maps.
                name: frame.features[name].clone(memory_format=torch.channels_last)
                for name in self.kept_features
            }
            frame.map_encoding = [tensor.clone() for tensor in frame.map_encoding]
        return frames

    @property
    def kept_features(self) -> Sequence[str]:
        """Names of the maps that are needed after :meth:`reference_parts`."""
        return self.in_features


def _frame_maps(frame: FrameFeatures) -> FrameMaps:
    return FrameMaps(frame.features, frame.image_size, frame.map_encoding)


def _build_backbone(cfg: CfgNode) -> Backbone:
    """As Detectron2's, which refuses by an assertion without a word what is no backbone."""
    name = cfg.MODEL.BACKBONE.NAME
    backbone = BACKBONE_REGISTRY.get(name)(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    if not isinstance(backbone, Backbone):
        raise PartError(
            f"MODEL.BACKBONE.NAME {name!r} is a {type(backbone).__name__}; derive it from "
            "detectron2.modeling.Backbone"
        )
    return backbone


def _tappable_shapes(backbone: Backbone) -> dict[str, ShapeSpec]:
    """Shapes of the maps that a backbone returns, and of those of the network below its neck."""
    below = bottom_up_of(backbone).output_shape()
    return {**below, **backbone.output_shape()}


def _no_detections(size: tuple[int, int], device: torch.device) -> Instances:
    return Instances(
        size,
        pred_boxes=Boxes(torch.zeros(0, 4, device=device)),
        scores=torch.zeros(0, device=device),
        pred_classes=torch.zeros(0, dtype=torch.long, device=device),
    )
