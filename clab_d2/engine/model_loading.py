"""Build a trained model for inference, from a config and weights or from its one file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from clab_d2.checkpoint.allocation_limit import AllocationLimit, AllocationRefused
from clab_d2.checkpoint.model_file import ModelCard, read_card
from clab_d2.checkpoint.portable_config import config_from_plain
from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.engine.checkpointer import BRANCH_PREFIX, VIDCheckpointer
from clab_d2.engine.config_check import validate_config
from clab_d2.engine.config_file import merge_options
from clab_d2.engine.test_time_augmentation import with_test_time_augmentation
from clab_d2.errors import ConfigError, DataError
from clab_d2.modeling import prepare_for_inference
from clab_d2.modeling.contrastive.base import CONTRASTIVE_LOSS_REGISTRY

logger = logging.getLogger(__name__)

# A model is made of fewer numbers than its file has bytes (and not of as many as shapes in it say:
# one number can pose as any shape), but some backbones are built whole before what detection
# doesn't need is taken off.
_NUMBERS_BESIDE = 2**24


def load_model(
    cfg: CfgNode, content: dict[str, Any] | None = None
) -> tuple[nn.Module, list[str] | None]:
    """Build a config's model, load ``MODEL.WEIGHTS``, and make it ready for inference.

    Args:
        cfg: the config; ``MODEL.DEVICE`` becomes "cpu" where there is no GPU.
        content: of the file of weights, where a config came out of it: nothing larger is built
            than weights so many could fill.

    Returns:
        The model, and the names of its classes where the file says them.

    Raises:
        ConfigError: there are no weights.
        DataError: the weights can't be loaded, or the file's config makes no model.
    """
    path = cfg.MODEL.WEIGHTS
    if not path:
        raise ConfigError(
            "MODEL.WEIGHTS is empty: name the trained weights, e.g. --weights "
            "output/model_final.pth"
        )
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but there is no GPU: on CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg) if content is None else _build_within(cfg, content, path)
    checkpointer = VIDCheckpointer(model, purpose="inference", trusted=cfg.MODEL.TRUST_WEIGHTS)
    checkpointer.load(path, content=content)
    if hasattr(model, "contrastive_branch") and not (
        checkpointer.fills_branch and model.appearance is not None
    ):
        model.contrastive_branch = None  # it has served the training
    model = with_test_time_augmentation(prepare_for_inference(model, cfg), cfg)
    return model, checkpointer.names_in_file


def read_detector(
    path: str | os.PathLike[str], *, device: str | None = None, options: Sequence[str] = ()
) -> tuple[CfgNode, dict[str, Any], ModelCard]:
    """What a model's one file says: its config, ready for use, its content, and its card.

    Args:
        path: the file.
        device: see :meth:`clab_d2.video.VideoDetector.from_file`.
        options: likewise.

    Raises:
        ConfigError, DataError: as there.
    """
    path = os.fspath(path)
    content = load_weights_file(path)
    card = read_card(content, path)
    if card is None:
        raise DataError(
            f"{path}: says nothing of its config, as files of clab_d2 0.1 and of other programs "
            "don't; add --config-file with the config that it was trained with"
        )
    cfg = config_from_plain(card.config, path, with_branch=_has_branch(content, card))
    if len(card.class_names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise DataError(
            f"{path}: names {len(card.class_names)} classes, but its config has "
            f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; get the file again from its source"
        )
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        validate_config(cfg)
    except ConfigError as error:
        raise DataError(f"{path}: of the config in it, {error}") from None
    merge_options(cfg, [*options, *(("MODEL.DEVICE", device) if device else ())])
    cfg.MODEL.WEIGHTS = path
    validate_config(cfg)
    return cfg, content, card


def _has_branch(content: Mapping[str, Any], card: ModelCard) -> bool:
    """Whether a file holds weights of a contrastive branch that can be built."""
    weights = content.get("model")
    section = card.config.get("MODEL")
    branch = section.get("CONTRASTIVE") if isinstance(section, Mapping) else None
    return (
        isinstance(weights, Mapping)
        and any(str(name).startswith(BRANCH_PREFIX) for name in weights)
        and isinstance(branch, Mapping)
        and isinstance(branch.get("LOSS"), str)
        and branch["LOSS"] in CONTRASTIVE_LOSS_REGISTRY
    )


def _build_within(cfg: CfgNode, content: Mapping[str, Any], path: str) -> nn.Module:
    """Build the model of a config that came with weights, no larger than these allow."""
    if not isinstance(content.get("model"), Mapping):
        raise DataError(f"{path}: holds no weights; get the file again from its source")
    try:
        with AllocationLimit(os.path.getsize(path) + _NUMBERS_BESIDE):
            return build_model(cfg)
    except AllocationRefused as refused:
        raise DataError(
            f"{path}: the config in it is of a larger model than its weights ({refused}); get the "
            "file again from its source"
        ) from None
    except ConfigError as error:
        raise DataError(f"{path}: of the config in it, {error}") from None
    except Exception as error:  # whatever parts make of values that don't go together
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: the config in it makes no model ({type(error).__name__}: {reason}); get the "
            "file again from its source"
        ) from error
