"""What a method of aggregation is: one small protocol for each of the four places.

A detector can aggregate over frames on its feature maps; with two stages, on its RoI features and
on its box features after each fully connected layer; with one, on its selected predictions. A
method is a module registered for one of these places; the config key of the place names it, and an
empty name leaves the place out. docs/extend.md shows each with a complete example.

What a method needs of a reference frame alone, it makes in an ``encode...`` method: in training
once a step, at test once a video, since the reference memory keeps it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.registry import Registry

if TYPE_CHECKING:
    from clab_d2.modeling.export.base import ExportedRoIAggregation

MAP_AGGREGATION_REGISTRY = Registry("MAP_AGGREGATION", "MODEL.AGGREGATION.MAPS")
MAP_AGGREGATION_REGISTRY.__doc__ = """
Methods on feature maps; an entry is called as ``entry(cfg, shapes)`` with the backbone's output
shapes by name, and gives a :class:`MapAggregation`.
"""

ROI_AGGREGATION_REGISTRY = Registry("ROI_AGGREGATION", "MODEL.AGGREGATION.ROI_FEATURES")
ROI_AGGREGATION_REGISTRY.__doc__ = """
Methods on RoI features; an entry is called as ``entry(cfg, channels)`` and gives a
:class:`RoIAggregation`.
"""

BOX_AGGREGATION_REGISTRY = Registry("BOX_AGGREGATION", "MODEL.AGGREGATION.BOX_FEATURES")
BOX_AGGREGATION_REGISTRY.__doc__ = """
Methods on the features after an FC layer, one for each layer; an entry is called as
``entry(cfg, dim)`` and gives a :class:`BoxAggregation`.
"""


PREDICTION_AGGREGATION_REGISTRY = Registry(
    "PREDICTION_AGGREGATION", "MODEL.AGGREGATION.PREDICTIONS"
)
PREDICTION_AGGREGATION_REGISTRY.__doc__ = """
Methods on the selected predictions of a one-stage head; an entry is called as
``entry(cfg, dim, num_classes)`` and gives a :class:`PredictionAggregation`.
"""


class Aggregation(nn.Module):
    """What methods of all places have in common.

    Attributes:
        needs_references: whether it uses reference frames.
    """

    needs_references: bool = True

    def start_as_identity(self) -> None:
        """Make a method that has just been built give the key frame's own features, exactly.

        A detector whose other weights come from a single-frame one then starts as that detector,
        and learns from there what to take from other frames. The next step of a training must give
        what stands still a gradient.

        Raises:
            ConfigError: the method has no such start, as by default.
        """
        raise ConfigError(
            f"MODEL.AGGREGATION.START_AS_IDENTITY is True, but {type(self).__name__} can't start "
            "as the identity; set it False"
        )


_Part = TypeVar("_Part", bound=Aggregation)


@dataclass
class FrameMaps:
    """A frame as a :class:`MapAggregation` sees it.

    Attributes:
        maps: feature maps by name, (1, C, h, w).
        encoded: what :meth:`MapAggregation.encode` gave for the frame, (1, ...) each.
        image_size: (height, width) of the image in pixels, without padding.
    """

    maps: dict[str, Tensor]
    image_size: tuple[int, int]
    encoded: Sequence[Tensor] = field(default_factory=tuple)


class MapAggregation(Aggregation, ABC):
    """Gives the key frame maps that take in the reference frames'."""

    def encode(self, images: Tensor, maps: dict[str, Tensor]) -> Sequence[Tensor]:
        """What is kept of frames beside their maps; by default nothing.

        Args:
            images: (N, 3, H, W), normalised and zero-padded, as the backbone takes them.
            maps: feature maps by name, (N, C, h, w).

        Returns:
            Tensors whose first dimension is N.
        """
        return ()

    @abstractmethod
    def forward(
        self, key: FrameMaps, references: Sequence[FrameMaps], counts: Sequence[int]
    ) -> dict[str, Tensor]:
        """
        Args:
            key: the key frame.
            references: the distinct reference frames, at least one if ``needs_references``; their
                maps may differ in size from the key frame's. The key frame may be among them, as
                the same object.
            counts: how often each of them counts.

        Returns:
            The key frame's maps, of the names and shapes that ``key.maps`` has.
        """


class RoIAggregation(Aggregation, ABC):
    """Gives the key frame's RoIs features that take in the reference frames' maps."""

    def encode_map(self, feature: Tensor) -> Any:
        """What is kept at test of a reference frame beside its map, as long as the map is kept.

        Args:
            feature: (C, h, w) a map that RoIs are pooled from.

        Returns:
            Anything; None, the default, for nothing. Where it is something, :meth:`forward` is
            given that of all references in their order, as ``encoded``.
        """
        return None

    @abstractmethod
    def forward(
        self,
        roi_features: Tensor,
        boxes: Tensor,
        feature: Tensor,
        references: Sequence[Tensor],
        counts: Sequence[int],
        *,
        scale: float,
        sampling_ratio: int,
        cat: Callable[[Sequence[Tensor]], Tensor],
    ) -> Tensor:
        """
        Args:
            roi_features: (R, C, S, S), plain RoIAlign of ``feature`` at ``boxes``.
            boxes: (R, 4) xyxy in the key frame's image coordinates.
            feature: (C, h, w), the key frame's map.
            references: maps of the distinct reference frames at the same level, (C, h_t, w_t); at
                least one if ``needs_references``.
            counts: how often each of them counts.
            scale: feature pixels per image pixel.
            sampling_ratio: RoIAlign's.
            cat: joins the references' maps, each as (h_t * w_t, C), and remembers at test what of
                it has not changed since the key frame before.

        Returns:
            (R, C, S, S).
        """

    def for_export(self) -> ExportedRoIAggregation:
        """The same for other runtimes (docs/export.md).

        Raises:
            ConfigError: the method has no such form, as by default.
        """
        raise ConfigError(
            f"MODEL.AGGREGATION.ROI_FEATURES {type(self).__name__} can't be exported; derive "
            "for_export() for it"
        )


class BoxAggregation(Aggregation, ABC):
    """Gives the key frame's RoIs features that take in the reference frames' RoIs, after an FC."""

    @abstractmethod
    def encode_references(self, features: Tensor) -> Sequence[Tensor]:
        """What reference RoIs contribute.

        Args:
            features: (M, C) of reference RoIs after this layer's FC, before its ReLU.

        Returns:
            Tensors (..., M, D): the RoIs along the last dimension but one.
        """

    @abstractmethod
    def forward(
        self, features: Tensor, references: Sequence[Tensor], counts: Tensor | None
    ) -> Tensor:
        """
        Args:
            features: (R, C) of the key frame's RoIs after this layer's FC, before its ReLU.
            references: as :meth:`encode_references` gave them, for the M RoIs of all reference
                frames together, of which there may be none; empty unless ``needs_references``.
            counts: (M,) how often each reference RoI counts; None: all alike, as once.

        Returns:
            (R, C), which takes the place of ``features``.
        """


class PredictionAggregation(Aggregation, ABC):
    """Gives the key frame's selected predictions new class scores, after a look at those of the
    reference frames; their boxes stay."""

    @abstractmethod
    def encode_references(
        self, cls_features: Tensor, box_features: Tensor, score_logits: Tensor
    ) -> Sequence[Tensor]:
        """What reference predictions contribute.

        Args:
            cls_features: (M, D) of the tower for classes, where they were predicted.
            box_features: (M, D) of the tower for boxes.
            score_logits: (M, K) logits of their scores.

        Returns:
            Tensors (..., M, E): the predictions along the last dimension but one.
        """

    @abstractmethod
    def forward(
        self,
        cls_features: Tensor,
        box_features: Tensor,
        score_logits: Tensor,
        references: Sequence[Tensor],
        counts: Tensor | None,
    ) -> Tensor:
        """
        Args:
            cls_features: (R, D) of the key frame's predictions.
            box_features: (R, D).
            score_logits: (R, K) logits of the scores that the head gave them.
            references: as :meth:`encode_references` gave them, for the M predictions of all
                reference frames together, of which there may be none; empty unless
                ``needs_references``.
            counts: (M,) how often each of them counts; None: all alike, as once.

        Returns:
            (R, K) logits of their new scores.
        """


def build_map_aggregation(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> MapAggregation | None:
    """Build what ``MODEL.AGGREGATION.MAPS`` names; None for ""."""
    name = cfg.MODEL.AGGREGATION.MAPS
    if not name:
        return None
    return _started(cfg, MAP_AGGREGATION_REGISTRY.build(name, MapAggregation, cfg, shapes))


def build_roi_aggregation(cfg: CfgNode, channels: int) -> RoIAggregation | None:
    """Build what ``MODEL.AGGREGATION.ROI_FEATURES`` names; None for "".

    Args:
        cfg: the config.
        channels: channels C of the feature maps.
    """
    name = cfg.MODEL.AGGREGATION.ROI_FEATURES
    if not name:
        return None
    return _started(cfg, ROI_AGGREGATION_REGISTRY.build(name, RoIAggregation, cfg, channels))


def build_box_aggregation(cfg: CfgNode, dim: int) -> BoxAggregation | None:
    """Build what ``MODEL.AGGREGATION.BOX_FEATURES`` names; None for "".

    Args:
        cfg: the config.
        dim: channels C after the FC layer.
    """
    name = cfg.MODEL.AGGREGATION.BOX_FEATURES
    if not name:
        return None
    return _started(cfg, BOX_AGGREGATION_REGISTRY.build(name, BoxAggregation, cfg, dim))


def build_prediction_aggregation(
    cfg: CfgNode, dim: int, num_classes: int
) -> PredictionAggregation | None:
    """Build what ``MODEL.AGGREGATION.PREDICTIONS`` names; None for "".

    Args:
        cfg: the config.
        dim: channels D of each tower.
        num_classes: number of classes K.
    """
    name = cfg.MODEL.AGGREGATION.PREDICTIONS
    if not name:
        return None
    registry = PREDICTION_AGGREGATION_REGISTRY
    return _started(cfg, registry.build(name, PredictionAggregation, cfg, dim, num_classes))


def _started(cfg: CfgNode, part: _Part) -> _Part:
    """A method that was just built, as ``MODEL.AGGREGATION.START_AS_IDENTITY`` wants it."""
    if cfg.MODEL.AGGREGATION.START_AS_IDENTITY:
        part.start_as_identity()
    return part
