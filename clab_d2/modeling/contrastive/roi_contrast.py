"""What losses over objects share: RoI embeddings of candidate boxes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from clab_d2.modeling.contrastive.base import ContrastiveFrame, map_distinct
from clab_d2.modeling.contrastive.embedding import RoIEmbedding
from clab_d2.modeling.contrastive.examples import Examples
from clab_d2.modeling.contrastive.pair_contrast import PairContrast
from clab_d2.modeling.contrastive.whole_batch import stable_label


@dataclass
class Candidates:
    """RoIs of a frame.

    Attributes:
        boxes: R boxes in pixels of the image.
        labels: (R,) int64; see :class:`Examples`.
        weights: (R,); see :class:`Examples`.
    """

    boxes: Boxes
    labels: Tensor
    weights: Tensor


class RoIContrast(PairContrast):
    """Embeddings of boxes in the frames whose truth is known.

    A frame that is listed twice counts once: an object would be alike to itself. A frame without
    objects, or whose truth is not known, takes no part.
    """

    needs_reference_truth = True
    embedding: RoIEmbedding

    @abstractmethod
    def candidates(self, frame: ContrastiveFrame, truth: Instances) -> Candidates:
        """RoIs of a frame.

        Args:
            frame: the frame.
            truth: its ground truth.
        """

    def examples(self, frames: Sequence[ContrastiveFrame]) -> Examples:
        distinct = list({id(frame): frame for frame in frames}.values())
        candidates = {
            id(frame): self.candidates(frame, frame.instances)
            if frame.instances is not None
            else _no_candidates(frame.feature)
            for frame in distinct
        }

        def embed(features: Tensor, members: Sequence[ContrastiveFrame]) -> Sequence[Tensor]:
            boxes = [candidates[id(frame)].boxes for frame in members]
            return self.embedding.of_boxes(features, boxes)

        embeddings = torch.cat(map_distinct(distinct, embed))
        found = [candidates[id(frame)] for frame in distinct]
        videos = [
            torch.full_like(each.labels, stable_label(*frame.video))
            for frame, each in zip(distinct, found, strict=True)
        ]
        return Examples(
            embeddings,
            torch.cat([each.labels for each in found]),
            torch.cat(videos),
            torch.cat([each.weights for each in found]),
        )


def _no_candidates(feature: Tensor) -> Candidates:
    return Candidates(
        Boxes(torch.zeros(0, 4, device=feature.device)),
        torch.zeros(0, dtype=torch.int64, device=feature.device),
        torch.zeros(0, device=feature.device),
    )
