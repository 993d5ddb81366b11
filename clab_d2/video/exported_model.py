"""An exported model as :class:`VideoDetector` takes it; needs neither PyTorch nor Detectron2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clab_d2.data.reference_frames import FrameChoice
from clab_d2.runtime.instances import ArrayInstances
from clab_d2.runtime.model import ExportedModel
from clab_d2.video.clip_model import ClipModel, Mode, sampling_of_mode


class ExportedClipModel(ClipModel):
    """A folder's model (docs/export.md).

    Attributes:
        model: the model.
    """

    def __init__(self, model: ExportedModel) -> None:
        self.model = model
        self.class_names = list(model.description.class_names)
        self.finds_shots = model.description.finds_shots

    def sampling_for(self, mode: Mode) -> FrameChoice | None:
        """The exported config's, unless the mode asks for another reach."""
        own = self.model.description.sampling
        if own is None:
            return None
        return sampling_of_mode(
            mode,
            own,
            # As many before as after.
            lambda: dataclasses.replace(own, sampling="fixed", num=own.num - own.num % 2),
            lambda: dataclasses.replace(own, sampling="causal"),
        )

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resize a frame: uint8 (H', W', 3)."""
        return self.model.description.preprocessing.resize(image)

    def detect(self, clips: Sequence[Mapping[str, Any]]) -> list[ArrayInstances]:
        """See :meth:`ClipModel.detect`."""
        return [output["instances"] for output in self.model(clips)]
