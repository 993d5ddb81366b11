"""A detector of PyTorch's as :class:`VideoDetector` takes it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from clab_d2.data.catalog import class_names as classes_of_datasets
from clab_d2.data.catalog import numbered_classes, register_datasets_from_config
from clab_d2.data.clip_augmentation import ClipAugmentation
from clab_d2.data.reference_frames import FrameChoice
from clab_d2.data.reference_sampling import (
    CausalReferences,
    FixedStrideReferences,
    ReferenceSampling,
    build_reference_sampling,
)
from clab_d2.errors import DataError
from clab_d2.postprocessing import build_postprocessing, postprocess_instances
from clab_d2.video.clip_model import ClipModel, Mode, sampling_of_mode

logger = logging.getLogger(__name__)


class PyTorchClipModel(ClipModel):
    """A config's model; see :class:`clab_d2.video.detector.VideoDetector` for the arguments.

    Attributes:
        cfg: a copy of the config.
        model: in evaluation mode.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        self.cfg = cfg.clone()
        if model is None:
            from clab_d2.engine.model_loading import load_model

            model, names_in_file = load_model(self.cfg)
            class_names = class_names or names_in_file
        self.model = model.eval()
        self.class_names = list(class_names or class_names_by_datasets(self.cfg))
        self._sampling: ReferenceSampling | None = None
        if self.model.needs_references:
            self._sampling = build_reference_sampling(self.cfg, is_train=False)
        self._transform = ClipAugmentation.from_config(self.cfg, is_train=False).sample()
        method = build_postprocessing(self.cfg)
        if method is not None:
            self.postprocessing = functools.partial(postprocess_instances, method=method)
        self._pins_memory = any(parameter.is_cuda for parameter in self.model.parameters())
        self.finds_shots = self.cfg.TEST.REFERENCES.FIND_SHOTS
        self.has_appearance = getattr(self.model, "appearance", None) is not None
        self.batch_size = self.cfg.TEST.KEY_FRAMES_PER_BATCH

    def sampling_for(self, mode: Mode) -> FrameChoice | None:
        """The config's, unless the mode asks for another reach."""
        references = self.cfg.TEST.REFERENCES
        return sampling_of_mode(
            mode,
            self._sampling,
            lambda: FixedStrideReferences(self.cfg, references),
            lambda: CausalReferences(self.cfg, references),
        )

    def prepare(self, image: np.ndarray) -> Tensor:
        """Resize a frame as the evaluation path does: uint8 (3, H', W')."""
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        resized = self._transform.for_size(*image.shape[:2]).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return tensor.pin_memory() if self._pins_memory else tensor

    def detect(self, clips: Sequence[Mapping[str, Any]]) -> list[Instances]:
        """See :meth:`ClipModel.detect`."""
        with torch.no_grad():
            return [output["instances"].to("cpu") for output in self.model(list(clips))]


def class_names_by_datasets(cfg: CfgNode) -> list[str]:
    """Names of the classes by the config's datasets, as far as these are there, else numbers."""
    try:
        register_datasets_from_config(cfg)
    except (DataError, OSError) as error:
        logger.warning("class names unknown: %s", error)
    return classes_of_datasets(cfg) or numbered_classes(cfg)
