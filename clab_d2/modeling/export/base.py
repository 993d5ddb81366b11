"""What a detector is made of where PyTorch does not run: two graphs and a memory outside.

The frame's graph makes all that depends on one frame alone, the key frame's makes detections of
what its own frame and the references gave. What is kept of frames in between stays in plain arrays
(:mod:`clab_d2.runtime.memory`), those of several references joined along an axis of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from clab_d2.errors import ConfigError

if TYPE_CHECKING:
    from clab_d2.modeling.temporal_detector import TemporalDetector


def refuse_map_aggregation(model: TemporalDetector) -> None:
    """What is aggregated before there are proposals would take a graph between the two.

    Raises:
        ConfigError: the detector aggregates maps.
    """
    if model.map_aggregation is not None:
        raise ConfigError(
            f"MODEL.AGGREGATION.MAPS {type(model.map_aggregation).__name__} can't be exported"
        )


class FrameGraph(nn.Module):
    """All that a frame gives, as key frame or as reference.

    Attributes:
        output_names: names of the outputs, in order.
    """

    output_names: Sequence[str]

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (1, 3, H, W), normalised and zero-padded as the backbone takes it.
            image_size: (2,) float, height and width without the padding.

        Returns:
            A tensor for each of ``output_names``, without a dimension for the batch. Their shapes
            follow from H and W alone; what varies with the content is padded.
        """
        raise NotImplementedError


class KeyFrameGraph(nn.Module):
    """Detections in a key frame, before those that overlap are left out."""

    def forward(
        self, own: Sequence[Tensor], counts: Tensor, references: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            own: outputs of the frame's graph for the key frame, those of ``ExportGraphs.own``.
            counts: (T,) float, how often each reference counts; may be empty where none is used.
            references: outputs of the frame's graph for T references, those of
                ``ExportGraphs.references``, joined along their new axes.

        Returns:
            Boxes (N, 1, 4), or (N, K, 4) where each class has its own, xyxy in pixels of the image
            given, which they may reach beyond, and scores (N, K) of K classes from 0 to 1; 0 where
            there is no prediction.
        """
        raise NotImplementedError


class ExportedRoIAggregation(nn.Module):
    """An aggregation on RoI features in operators that graphs have.

    Attributes:
        reference_names: of what :meth:`of_reference` gives.
    """

    reference_names: Sequence[str]

    def of_reference(self, feature: Tensor) -> Sequence[Tensor]:
        """What is kept of a reference's map (C, h, w) of one level."""
        raise NotImplementedError

    def forward(self, roi_features: Tensor, counts: Tensor, *references: Tensor) -> Tensor:
        """
        Args:
            roi_features: (R, C, S, S) of the key frame.
            counts: (T,), how often each reference counts.
            references: what :meth:`of_reference` gave of T maps, joined along a new first axis.

        Returns:
            (R, C, S, S).
        """
        raise NotImplementedError


@dataclass
class ExportGraphs:
    """A detector's two graphs.

    Attributes:
        frame: the frame's.
        key_frame: the key frame's.
        own: names of the frame's outputs that the key frame's graph takes of the key frame.
        references: names of those that it takes of the references -> the axis of the joined tensor
            that counts frames. Empty for a single-frame detector.
        score_threshold, nms_threshold, max_detections: which predictions are detections: those
            above the score, without what overlaps a better one of its class by more than the IoU,
            the best so many.
    """

    frame: FrameGraph
    key_frame: KeyFrameGraph
    own: Sequence[str]
    references: Mapping[str, int] = field(default_factory=dict)
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
