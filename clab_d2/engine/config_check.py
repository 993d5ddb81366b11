"""Find contradictions in a config before anything is built, each told in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
)

from clab_d2.data.clip_augmentation import ClipAugmentation
from clab_d2.data.frames import IMAGE_FORMATS
from clab_d2.data.reference_sampling import build_reference_sampling
from clab_d2.data.training_order import TRAINING_SAMPLERS, factors_of_datasets
from clab_d2.engine.optimizer import OPTIMIZERS
from clab_d2.engine.service_writers import check_services
from clab_d2.engine.test_time_augmentation import views_of
from clab_d2.errors import ConfigError, PartError
from clab_d2.modeling.aggregation.base import (
    BOX_AGGREGATION_REGISTRY,
    MAP_AGGREGATION_REGISTRY,
    PREDICTION_AGGREGATION_REGISTRY,
    ROI_AGGREGATION_REGISTRY,
)
from clab_d2.modeling.aggregation.flow_guided import FLOWS
from clab_d2.modeling.backbones.base import feature_keys
from clab_d2.modeling.backbones.necks import NECKS
from clab_d2.modeling.contrastive.base import CONTRASTIVE_LOSS_REGISTRY
from clab_d2.modeling.contrastive.schedule import SCHEDULES
from clab_d2.modeling.dense_heads.base import DENSE_HEAD_REGISTRY, TOWERS
from clab_d2.modeling.optimize import PRECISIONS
from clab_d2.postprocessing import build_postprocessing

# Networks of Detectron2's that leave no blocks out in training.
_WITHOUT_DROP_PATH = (
    "build_resnet_backbone",
    "build_resnet_dc5_backbone",
    "build_resnet_fpn_backbone",
    "build_regnet_backbone",
)

RESNET_STAGES = ("stem", "res2", "res3", "res4", "res5")


def validate_config(cfg: CfgNode) -> None:
    """Check what can be checked from the config alone; no dataset is read, no model built.

    Raises:
        ConfigError: one line that names the key and the remedy.
    """
    for check in _CHECKS:
        check(cfg)


def _choice(key: str, value: object, choices: object) -> None:
    options = list(choices)  # type: ignore[call-overload]
    if value not in options:
        raise ConfigError(f"{key} is {value!r}; choose one of {', '.join(map(repr, options))}")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ConfigError(f"{key} is {value}; it must be at least {least}")


def _check_names(cfg: CfgNode) -> None:
    model = cfg.MODEL
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.PROPOSAL_GENERATOR.NAME", model.PROPOSAL_GENERATOR.NAME,
         PROPOSAL_GENERATOR_REGISTRY),
        ("MODEL.ROI_HEADS.NAME", model.ROI_HEADS.NAME, ROI_HEADS_REGISTRY),
        ("MODEL.ROI_BOX_HEAD.NAME", model.ROI_BOX_HEAD.NAME, ROI_BOX_HEAD_REGISTRY),
    ):  # fmt: skip
        if name not in registry:
            ours = sorted(n for n, thing in registry if thing.__module__.startswith("clab_d2."))
            raise ConfigError(
                f"{key} {name!r} is not registered; ours are {', '.join(ours)}, another's module "
                "needs its --import"
            )
    meta_architecture = META_ARCH_REGISTRY.get(model.META_ARCHITECTURE)
    if not isinstance(meta_architecture, type):
        return
    if meta_architecture.__module__.startswith("detectron2."):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE!r} takes images, not clips; take "
            "TemporalRCNN or, of one stage, TemporalDense; each is a single-frame detector where "
            "MODEL.AGGREGATION is empty"
        )
    # Its own way of dealing with clips is free to it, but a loader must know what it needs.
    for attribute in ("needs_references", "needs_reference_truth"):
        if not hasattr(meta_architecture, attribute):
            raise PartError(
                f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE!r}: class "
                f"{meta_architecture.__name__} has no {attribute}; derive it from "
                "clab_d2.modeling.TemporalDetector, or say it there (docs/extend.md)"
            )
    missing = sorted(getattr(meta_architecture, "__abstractmethods__", ()))
    if missing:
        raise PartError(
            f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE!r}: class "
            f"{meta_architecture.__name__} lacks {', '.join(missing)}; docs/extend.md shows what "
            "such a class has"
        )


def _check_choices(cfg: CfgNode) -> None:
    _choice("INPUT.FORMAT", cfg.INPUT.FORMAT, IMAGE_FORMATS)
    _choice(
        "MODEL.CONTRASTIVE.WEIGHT.SCHEDULE",
        cfg.MODEL.CONTRASTIVE.WEIGHT.SCHEDULE,
        SCHEDULES,
    )
    _choice("MODEL.FLOW_GUIDED.FLOW", cfg.MODEL.FLOW_GUIDED.FLOW, FLOWS)
    _choice("MODEL.DENSE.TOWERS", cfg.MODEL.DENSE.TOWERS, TOWERS)
    _choice("TEST.PRECISION", cfg.TEST.PRECISION, PRECISIONS)
    _choice("DATALOADER.SAMPLER_TRAIN", cfg.DATALOADER.SAMPLER_TRAIN, TRAINING_SAMPLERS)
    _choice("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, sorted(OPTIMIZERS))
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        _choice(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
            cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE,
            ("full_model", "norm", "value"),
        )


def _check_images(cfg: CfgNode) -> None:
    """What is done to images, at test as well: a training's evaluation comes hours later; and how
    often each dataset's come."""
    for is_train in (True, False):
        ClipAugmentation.from_config(cfg, is_train)
    if cfg.TEST.AUG.ENABLED:
        views_of(cfg)
    if cfg.DATASETS.TRAIN and cfg.DATALOADER.SAMPLER_TRAIN.startswith("Weighted"):
        factors_of_datasets(cfg)


# Keys of Detectron2's that would change nothing here, what they must be, and what to do instead.
_WITHOUT_EFFECT: tuple[tuple[str, Any, str], ...] = (
    ("MODEL.MASK_ON", False, "clips have no masks"),
    ("MODEL.KEYPOINT_ON", False, "clips have no keypoints"),
    ("MODEL.LOAD_PROPOSALS", False, "proposals come from the RPN"),
    ("DATASETS.PROPOSAL_FILES_TRAIN", (), "proposals come from the RPN"),
    ("DATASETS.PROPOSAL_FILES_TEST", (), "proposals come from the RPN"),
    ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", False, "the box head trains on proposals"),
)


def _check_without_effect(cfg: CfgNode) -> None:
    for key, must_be, why in _WITHOUT_EFFECT:
        value = functools.reduce(getattr, key.split("."), cfg)
        if (tuple(value) if isinstance(value, list | tuple) else value) != must_be:
            raise ConfigError(f"{key} is {value!r} and would change nothing: {why}; leave it out")
    if cfg.MODEL.BACKBONE.FIX_BN_STATISTICS and "SyncBN" in (
        cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM,
    ):
        raise ConfigError(
            "MODEL.BACKBONE.FIX_BN_STATISTICS fixes what SyncBN would share between GPUs; take "
            'MODEL.RESNETS.NORM (and FPN.NORM) "BN", or set it False'
        )


def _check_backbone(cfg: CfgNode) -> None:
    backbone = cfg.MODEL.BACKBONE
    network = backbone.NAME if backbone.NAME not in NECKS else backbone.BOTTOM_UP
    if backbone.DROP_PATH and network in _WITHOUT_DROP_PATH:
        raise ConfigError(
            f"MODEL.BACKBONE.DROP_PATH is {backbone.DROP_PATH} and would change nothing: {network} "
            "has no drop path; set it 0"
        )
    if not 0 <= backbone.DROP_PATH < 1:
        raise ConfigError(
            f"MODEL.BACKBONE.DROP_PATH is {backbone.DROP_PATH}; it must be from 0 to less than 1"
        )
    for key in ("BACKBONE_MULTIPLIER", "LAYER_DECAY"):
        if cfg.SOLVER[key] <= 0:
            raise ConfigError(
                f"SOLVER.{key} is {cfg.SOLVER[key]}; it must be above 0 (to train nothing of a "
                "backbone, freeze it by MODEL.BACKBONE.FREEZE_AT)"
            )


def _check_plugs(cfg: CfgNode) -> None:
    """That what the plugs' keys name is registered, and its numbers make sense."""
    places = cfg.MODEL.AGGREGATION
    for registry, name in (
        (MAP_AGGREGATION_REGISTRY, places.MAPS),
        (ROI_AGGREGATION_REGISTRY, places.ROI_FEATURES),
        (BOX_AGGREGATION_REGISTRY, places.BOX_FEATURES),
        (PREDICTION_AGGREGATION_REGISTRY, places.PREDICTIONS),
        (DENSE_HEAD_REGISTRY, cfg.MODEL.DENSE.HEAD),
        (CONTRASTIVE_LOSS_REGISTRY, cfg.MODEL.CONTRASTIVE.LOSS),
    ):
        if name:
            registry.get(name)
    # Here, and not only where they are built: an evaluation's numbers would be looked at last.
    if any(places.values()) or cfg.MODEL.CONTRASTIVE.ENABLED:
        for is_train in (True, False):
            build_reference_sampling(cfg, is_train)
    build_postprocessing(cfg)
    _at_least("TEST.KEY_FRAMES_PER_BATCH", cfg.TEST.KEY_FRAMES_PER_BATCH, 1)


def backbone_features(cfg: CfgNode) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Names of a backbone's feature maps.

    Returns:
        Those that the detector's heads can take, and those that the contrastive branch can tap;
        None for backbones that this package does not know.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name == "build_resnet_dc5_backbone":
        # Nothing behind the neck's stage is computed; the branch has its stage made.
        made = RESNET_STAGES[: RESNET_STAGES.index(cfg.MODEL.NECK.IN_FEATURE) + 1]
        asked = {*cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.NECK.IN_FEATURE}
        return (*(stage for stage in made if stage in asked), "c5"), (*made[1:], "c5")
    if name == "build_resnet_fpn_backbone":
        stages = cfg.MODEL.FPN.IN_FEATURES
        levels = [f"p{stage[-1]}" for stage in stages]
        levels.append(f"p{int(stages[-1][-1]) + 1}")
        return (*levels,), (*cfg.MODEL.RESNETS.OUT_FEATURES, *levels)
    return None


def _check_features(cfg: CfgNode) -> None:
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_dc5_backbone":
        _choice("MODEL.NECK.IN_FEATURE", cfg.MODEL.NECK.IN_FEATURE, RESNET_STAGES[1:])
    features = backbone_features(cfg)
    if features is None:
        return
    outputs, tappable = features
    for key in feature_keys(cfg):
        for feature in cfg.MODEL[key].IN_FEATURES:
            _choice(f"MODEL.{key}.IN_FEATURES", feature, outputs)
    if cfg.MODEL.CONTRASTIVE.ENABLED:
        _choice("MODEL.CONTRASTIVE.IN_FEATURE", cfg.MODEL.CONTRASTIVE.IN_FEATURE, tappable)


def _check_contrastive(cfg: CfgNode) -> None:
    branch = cfg.MODEL.CONTRASTIVE
    if not branch.ENABLED:
        return
    _at_least("MODEL.CONTRASTIVE.WEIGHT.START", branch.WEIGHT.START, 0)
    if branch.WEIGHT.SCHEDULE != "constant":
        _at_least("MODEL.CONTRASTIVE.WEIGHT.STEPS", branch.WEIGHT.STEPS, 1)


def _check_solver(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    _at_least("SOLVER.MAX_ITER", solver.MAX_ITER, 1)
    _at_least("SOLVER.IMS_PER_BATCH", solver.IMS_PER_BATCH, 1)
    _at_least("SOLVER.CHECKPOINT_PERIOD", solver.CHECKPOINT_PERIOD, 1)
    _at_least("SOLVER.LOG_PERIOD", solver.LOG_PERIOD, 1)
    if not 0 <= solver.EMA_DECAY < 1:
        raise ConfigError(
            f"SOLVER.EMA_DECAY is {solver.EMA_DECAY}; it must be from 0 (no average) to less than 1"
        )
    _at_least("MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES, 1)
    if solver.REFERENCE_WORLD_SIZE and solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} is no multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE {solver.REFERENCE_WORLD_SIZE}; change one of them"
        )
    if solver.AMP.ENABLED and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        raise ConfigError("SOLVER.AMP.ENABLED needs a GPU; set it False for MODEL.DEVICE cpu")


def _check_log(cfg: CfgNode) -> None:
    check_services(list(cfg.LOG.SERVICES))
    _at_least("LOG.PICTURES", cfg.LOG.PICTURES, 0)


_CHECKS: tuple[Callable[[CfgNode], None], ...] = (
    _check_names,
    _check_choices,
    _check_backbone,
    _check_images,
    _check_without_effect,
    _check_plugs,
    _check_features,
    _check_contrastive,
    _check_solver,
    _check_log,
)
