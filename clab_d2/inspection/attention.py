"""What one detection took from other frames: SELSA's weights, Temporal RoI Align's positions.

The detector detects as ever, an :class:`~clab_d2.inspection.aggregation_trace.AggregationTrace`
notes what its aggregations are given, and from that the weights are computed once more by their own
methods: ``SELSA.attention_weights``, ``TemporalRoIAlign.search`` and ``frame_weights``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn

from clab_d2.data.clip_augmentation import ClipAugmentation
from clab_d2.data.reference_sampling import build_reference_sampling
from clab_d2.data.shot_references import ShotReferences
from clab_d2.errors import ConfigError, DataError
from clab_d2.inspection.aggregation_trace import AggregationTrace, BoxCall, RoICall, Stage
from clab_d2.layers.rows import map_rows
from clab_d2.modeling.aggregation.selsa import SELSA, KeyValue
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.optimize import autocast_to
from clab_d2.modeling.reference_memory import FrameFeatures, References
from clab_d2.modeling.temporal_rcnn import TemporalRCNN
from clab_d2.video import VideoSource
from clab_d2.video.shots import find_shots_of


@dataclass(frozen=True)
class AttendedProposals:
    """The proposals of one reference frame, as SELSA weights them after one FC layer.

    Attributes:
        boxes: (M_t, 4) xyxy in pixels of the frame.
        weights: (M_t,) mean over the heads. Over all frames they sum to 1; a frame that is a
            reference twice has the weight of both.
    """

    boxes: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class GatheredPositions:
    """The positions that Temporal RoI Align took of one reference frame, bin by bin.

    Attributes:
        points: (S * S, K, 2) xy of the middle of each position, in pixels of the frame.
        weights: (S * S, K) shares of the positions in the bin's result, mean over heads: the
            frame's weight times the softmax over the cosines.
        cosines: (S * S, K) similarity to the bin.
    """

    points: np.ndarray
    weights: np.ndarray
    cosines: np.ndarray


@dataclass(frozen=True)
class DetectionAttention:
    """What one detection took from the reference frames.

    Attributes:
        roi: (4,) xyxy, the RoI that became the detection, in pixels of the key frame.
        proposals: by FC layer, then by reference frame; empty without SELSA.
        positions: by reference frame; empty without Temporal RoI Align.
        own_weights: (S * S,) what each bin keeps of the key frame's own RoI features; None without
            Temporal RoI Align.
        bins: S, along each side of a RoI.
    """

    roi: np.ndarray
    proposals: list[dict[int, AttendedProposals]]
    positions: dict[int, GatheredPositions]
    own_weights: np.ndarray | None
    bins: int


@dataclass(frozen=True)
class _Frame:
    image: np.ndarray
    features: FrameFeatures

    @property
    def scale(self) -> np.ndarray:
        """(2,): by what x and y in the image that the model had become pixels of the frame."""
        height, width = self.features.image_size
        return np.array([self.image.shape[1] / width, self.image.shape[0] / height])

    def in_pixels(self, boxes: Tensor) -> np.ndarray:
        """(N, 4) boxes of the image that the model had, in pixels of the frame."""
        return boxes.detach().cpu().numpy() * np.tile(self.scale, 2)


class KeyFrameAttention:
    """Detections in one key frame of a video, and what each took from its reference frames.

    The reference frames are those of ``TEST.REFERENCES``, so the detections are those of
    :meth:`VideoDetector.detect` in the video as a whole.

    Attributes:
        key: number of the key frame.
        images: RGB uint8 (H, W, 3) of the key and the reference frames, by frame number.
        references: how often each frame is a reference, by number; unreadable ones are left out.
        instances: detections, best first; ``pred_boxes`` in pixels of the key frame, ``rows`` the
            RoI that each was.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, source: VideoSource, key: int) -> None:
        """
        Args:
            cfg: the model's config.
            model: a trained detector.
            source: the video; of known length.
            key: the frame to detect in, from 0.

        Raises:
            ConfigError: the detector has no such aggregation, or tests with augmentation.
            DataError: there is no such frame, or it is damaged.
        """
        _check_model(model)
        assert isinstance(model, TemporalRCNN)
        if source.num_frames is None:
            raise DataError(f"{source.name}: a stream has no frame {key} yet; name a video")
        if not 0 <= key < source.num_frames:
            raise DataError(
                f"{source.name}: no frame {key}; the last of its {source.num_frames} frames is "
                f"{source.num_frames - 1}"
            )
        self.key = key
        sampling = build_reference_sampling(cfg, is_train=False)
        if cfg.TEST.REFERENCES.FIND_SHOTS:
            sampling = ShotReferences(sampling, find_shots_of(source))
        counts = Counter(sampling.references(source.num_frames, key))
        self.images = _read(source, [key, *counts], key)
        self.references = {n: count for n, count in counts.items() if n in self.images} or {key: 1}
        with torch.no_grad(), autocast_to(model.precision, model.device):
            self._frames = {
                number: _Frame(image, model.extract([_as_given(cfg, image)])[0])
                for number, image in self.images.items()
            }
            frame = self._frames[key].features
            references = References(
                [self._frames[number].features for number in self.references],
                list(self.references.values()),
            )
            with AggregationTrace(model) as trace:
                found = model.detect(model.aggregate_maps(frame, references), references)
        self._stages: Sequence[Stage] = trace.stages
        found.rows = self._rows_of(found)
        self.instances = detector_postprocess(found, *self.images[key].shape[:2]).to("cpu")

    def of(self, detection: int) -> DetectionAttention:
        """What a detection, by its number in ``instances``, took from the reference frames.

        Of a cascade it is what the last stage took.
        """
        row = int(self.instances.rows[detection])
        stage = self._stages[-1]
        roi = stage.boxes[row]
        positions, own, bins = self._positions(stage, roi)
        return DetectionAttention(
            roi=self._frames[self.key].in_pixels(roi[None])[0],
            proposals=[
                self._proposals(call, row)
                for call in stage.box_calls
                if isinstance(call.part, SELSA)
            ],
            positions=positions,
            own_weights=own,
            bins=bins,
        )

    def _rows_of(self, found: Instances) -> Tensor:
        """The RoI that became each detection: the one whose score for its class is the detection's.

        A cascade's scores are means over its stages.
        """
        scores = torch.stack([stage.logits.float().softmax(dim=1) for stage in self._stages])
        of_class = scores.mean(dim=0)[:, found.pred_classes]
        return (of_class - found.scores).abs().argmin(dim=0)

    @torch.no_grad()
    def _proposals(self, call: BoxCall, row: int) -> dict[int, AttendedProposals]:
        part = call.part
        assert isinstance(part, SELSA)
        # Of mixed precision they come in half, and the part's own weights are not.
        dtype = part.query.weight.dtype
        keys_values = KeyValue(*(tensor.to(dtype) for tensor in call.references))
        features = call.features[row : row + 1].to(dtype)
        weights = part.attention_weights(features, keys_values, call.counts)
        frames = [self._frames[number] for number in self.references]
        by_frame = weights.mean(dim=0)[0].split([len(f.features.proposals) for f in frames])
        return {
            number: AttendedProposals(
                frame.in_pixels(frame.features.proposals.proposal_boxes.tensor),
                own.cpu().numpy(),
            )
            for number, frame, own in zip(self.references, frames, by_frame, strict=True)
        }

    @torch.no_grad()
    def _positions(
        self, stage: Stage, roi: Tensor
    ) -> tuple[dict[int, GatheredPositions], np.ndarray | None, int]:
        for call in stage.roi_calls:
            same = (call.arguments["boxes"] == roi).all(dim=1).nonzero().flatten()
            if isinstance(call.part, TemporalRoIAlign) and len(same):
                return self._positions_of(call, int(same[0]))
        return {}, None, 0

    def _positions_of(
        self, call: RoICall, row: int
    ) -> tuple[dict[int, GatheredPositions], np.ndarray, int]:
        part, given = call.part, call.arguments
        assert isinstance(part, TemporalRoIAlign)
        pooled = given["roi_features"][row : row + 1]
        size, channels = pooled.shape[-1], pooled.shape[1]
        bins = pooled.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()
        maps = [map_rows(reference) for reference in given["references"]]
        found = part.search(
            bins, given["boxes"][row : row + 1], given["feature"], maps,
            scale=given["scale"], sampling_ratio=given["sampling_ratio"],
        )  # fmt: skip
        gathered = part.gather(bins, maps, found)
        gathered = gathered.view(-1, 1, size, size, channels).permute(0, 1, 4, 2, 3)
        frames = torch.cat([pooled[None].to(gathered.dtype), gathered])
        # (1 + T, S * S), mean over heads
        shares = part.frame_weights(frames, given["counts"])[:, 0].mean(dim=1).flatten(1)
        if part.gate is not None:
            shares = part.gate * shares
            shares[0] += 1 - part.gate
        positions = {}
        for number, feature, one, share in zip(
            self.references, given["references"], found, shares[1:], strict=True
        ):
            width = feature.shape[-1]
            xy = torch.stack([one.positions % width, one.positions // width], dim=-1)
            in_image = (xy.float() + 0.5) / given["scale"]
            weights = one.cosines.float().softmax(dim=1) * share[:, None]
            positions[number] = GatheredPositions(
                in_image.cpu().numpy() * self._frames[number].scale,
                weights.cpu().numpy(),
                one.cosines.float().cpu().numpy(),
            )
        return positions, shares[0].cpu().numpy(), size


def _check_model(model: nn.Module) -> None:
    """One line for a detector that has nothing to show."""
    if not isinstance(model, TemporalRCNN):
        raise ConfigError(
            f"a {type(model).__name__} can't be looked into; it takes a TemporalRCNN, and "
            "TEST.AUG.ENABLED False"
        )
    heads = model.roi_heads
    parts = [heads.roi_aggregation, *(p for head in heads.box_heads for p in head.modules())]
    if not any(isinstance(part, (SELSA, TemporalRoIAlign)) for part in parts):
        raise ConfigError(
            "the detector takes nothing from other frames by SELSA or Temporal RoI Align; name one "
            "with MODEL.AGGREGATION.BOX_FEATURES SELSA or .ROI_FEATURES TemporalRoIAlign"
        )


def _read(source: VideoSource, numbers: Sequence[int], key: int) -> Mapping[int, np.ndarray]:
    """Frames by number; references that are damaged are left out."""
    images: dict[int, np.ndarray] = {}
    for number in dict.fromkeys(numbers):
        try:
            images[number] = source.read(number)
        except DataError:
            if number == key:
                raise
    return images


def _as_given(cfg: CfgNode, image: np.ndarray) -> Tensor:
    """A frame as evaluation gives it to the model: uint8 (3, H', W'), in ``INPUT.FORMAT``."""
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    transform = ClipAugmentation.from_config(cfg, is_train=False).sample()
    resized = transform.for_size(*image.shape[:2]).apply_image(image)
    return torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
