"""Tell what a file of weights is, convert it, and check it against a config."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from clab_d2.checkpoint import mmtracking
from clab_d2.checkpoint.model_file import CARD_KEY, ModelCard, read_card
from clab_d2.checkpoint.portable_config import config_to_plain
from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.checkpoint.safetensors_file import SUFFIX, write_safetensors
from clab_d2.checkpoint.torchvision import BACKBONE_PREFIX, convert_resnet, resnet_facts
from clab_d2.data.dataset_classes import read_classes_metadata
from clab_d2.data.imagenet_vid import IMAGENET_VID_CLASSES
from clab_d2.errors import DataError
from clab_d2.io import atomic_write

# A detector's parts that a config may leave out (with other results, as it asks for) or add.
_SWITCHABLE = ("contrastive_branch.", "roi_heads.roi_aggregation.")
_TRAINING_ONLY = ("contrastive_branch.",)
_PREDICTOR = "roi_heads.box_predictor."

# For each part of the model: what to set when its shapes differ.
_REMEDIES = [
    ("backbone.neck.", "set MODEL.NECK.OUT_CHANNELS (and IN_FEATURE) to the checkpoint's"),
    ("backbone.fpn_", "set MODEL.FPN.OUT_CHANNELS and IN_FEATURES to the checkpoint's"),
    ("backbone.", "use a config with the checkpoint's backbone: {backbone}"),
    (
        "proposal_generator.",
        "set MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS to the checkpoint's anchors",
    ),
    (
        "roi_heads.box_head.",
        "set MODEL.ROI_BOX_HEAD.NUM_FC, FC_DIM and POOLER_RESOLUTION, and MODEL.SELSA, to the "
        "checkpoint's",
    ),
    (
        _PREDICTOR,
        "set MODEL.ROI_HEADS.NUM_CLASSES to the checkpoint's, or leave its class layers out with "
        "--new-classes",
    ),
    (
        "roi_heads.roi_aggregation.",
        "set MODEL.AGGREGATION.ROI_FEATURES, and the neck's channels, as in the checkpoint",
    ),
    ("contrastive_branch.", "set MODEL.CONTRASTIVE's dimensions to the checkpoint's"),
    ("", "use a config of the checkpoint's architecture"),
]


@dataclass(frozen=True)
class Options:
    """What the user says about the file beyond what it says itself.

    Attributes:
        num_ratios: aspect ratios of the RPN's anchors; None: the config's, else 3.
        class_order: class names as the checkpoint numbers them; None: what its meta data say.
        new_classes: leave out the layers that depend on the set of classes.
    """

    num_ratios: int | None = None
    class_order: tuple[str, ...] | None = None
    new_classes: bool = False


@dataclass
class Conversion:
    """Converted weights and the account of what became of every key.

    Attributes:
        weights: our name -> tensor.
        kind: what was given, in a few words.
        num_keys: weights (keys) in the file.
        left_out: keys left out on purpose.
        unplaced: keys that have no place in our models.
        notes: lines to tell the user.
        classes: names in the order of the converted class layers, where known.
        detector: whether it is a whole detector, rather than a backbone.
        backbone_keys: config keys of the backbone.
    """

    weights: dict[str, Tensor]
    kind: str
    num_keys: int
    left_out: list[str]
    unplaced: list[str]
    notes: list[str] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    detector: bool = False
    backbone_keys: str = ""


def convert_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    cfg: CfgNode | None = None,
    options: Options = Options(),
    trusted: bool = False,
) -> Conversion:
    """Convert a file of weights to one for ``MODEL.WEIGHTS``, written whole or not at all.

    Args:
        source: an MMTracking, MMDetection, CLAB-release or torchvision checkpoint, in any format
            that :func:`~clab_d2.checkpoint.safe_load.load_weights_file` reads.
        target: the ``.pth`` or ``.safetensors`` file to write; from one of these formats to the
            other, weights of our own models convert, too.
        cfg: the config it is for; with it, weights that do not fit are refused.
        options: what the user says about the file.
        trusted: see :func:`~clab_d2.checkpoint.safe_load.load_weights_file`.

    Returns:
        What was written, and what became of every key.

    Raises:
        DataError: one line that names the file, the key and the remedy.
    """
    source, target = Path(source), Path(target)
    if target.suffix not in (".pth", SUFFIX):
        raise DataError(
            f"{target}: Detectron2 reads other formats by other suffixes; name it .pth or {SUFFIX}"
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise DataError(f"{target}: is the file to convert; give the result another name")
    content = load_weights_file(source, trusted)
    try:
        # Weights of ours become another kind of file; to convert them otherwise is a mistake.
        changes_format = (source.suffix == SUFFIX) != (target.suffix == SUFFIX)
        result = convert(content, cfg, options, admit_ours=changes_format)
        if cfg is not None:
            result.notes += check_fits(result, model_shapes(cfg))
        card = _card(content, result, cfg, source)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    origin = {
        "kind": result.kind,
        "file": source.name,
        "sha256": _sha256(source),
        "classes": None if result.classes is None else list(result.classes),
    }
    cards = {} if card is None else {CARD_KEY: card.to_plain()}
    try:
        if target.suffix == SUFFIX:
            metadata = {"__author__": "clab_d2", "source": json.dumps(origin)}
            metadata |= {key: json.dumps(value) for key, value in cards.items()}
            write_safetensors(target, result.weights, metadata)
        else:
            payload = {
                "model": result.weights,
                "__author__": "clab_d2",
                "matching_heuristics": False,
                "source": origin,
                **cards,
            }
            with atomic_write(target, "wb") as file:
                torch.save(payload, file)
    except OSError as error:
        raise DataError(f"{target}: can't be written ({error.strerror or error})") from None
    return result


def convert(
    content: Mapping[str, Any],
    cfg: CfgNode | None = None,
    options: Options = Options(),
    *,
    admit_ours: bool = False,
) -> Conversion:
    """Convert a loaded checkpoint.

    Args:
        content: the dict that was saved.
        cfg: the config that says how the anchors are grouped and which classes are wanted: those
            of its first dataset, which is registered (``register_datasets_from_config``).
        options: what the user says about the file.
        admit_ours: take weights that have our models' names already, as they are.

    Raises:
        DataError: one line, without the file's name.
    """
    state = _state_dict(content)
    if any(key.startswith(("detector.", "rpn_head.", "roi_head.")) for key in state):
        result = _convert_detector(state, content.get("meta"), cfg, options)
    elif admit_ours and any(key.startswith(BACKBONE_PREFIX) for key in state):
        result = _take_over(state, options)
    else:
        result = _convert_backbone(state)
    beside = [str(key) for key in content if key not in ("state_dict", "model")]
    if content.get("state_dict") is not None and beside:
        result.notes.append(f"left out beside the weights: {', '.join(beside)}")
    for name, value in result.weights.items():
        if not torch.isfinite(value).all():
            raise DataError(f"{name} holds NaN or infinity; give a checkpoint that did not diverge")
    return result


def model_shapes(cfg: CfgNode) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of the model that a config describes."""
    # Imported late, as renaming weights takes nothing of it.
    from detectron2.modeling import build_model

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    state = build_model(cfg).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def check_fits(result: Conversion, wanted: Mapping[str, Sequence[int]]) -> list[str]:
    """Compare converted weights with the model they are for.

    A detector must bring every weight of the model; ImageNet weights every one of its backbone.
    What only training uses may be missing, and the contrastive branch and Temporal RoI Align may
    be there without being used.

    Args:
        result: the converted weights.
        wanted: the model's names and shapes, see :func:`model_shapes`.

    Returns:
        Notes on what fits though it is not the same.

    Raises:
        DataError: names the first weight that does not fit, the shapes, and what to do.
    """
    wanted = {
        name: tuple(shape)
        for name, shape in wanted.items()
        if not name.endswith("num_batches_tracked") and name not in ("pixel_mean", "pixel_std")
    }
    if not any(name.startswith(BACKBONE_PREFIX) for name in wanted):
        raise DataError(
            f"the config's model has no weights under {BACKBONE_PREFIX}: its backbone is no ResNet "
            "with a neck; use build_resnet_dc5_backbone or build_resnet_fpn_backbone"
        )
    missing_parts: set[str] = set()
    for name, shape in wanted.items():
        if name in result.weights:
            found = tuple(result.weights[name].shape)
            if found != shape:
                raise DataError(
                    f"{name} has shape {found} and the config wants {shape}: "
                    f"{_remedy(name, result)}"
                )
        elif _must_be_there(name, result):
            raise DataError(
                f"{name}, of shape {shape} in the config's model, is not in the checkpoint: "
                f"{_remedy(name, result)}"
            )
        else:
            missing_parts.add(_part(name))
    unused_parts: set[str] = set()
    for name, value in result.weights.items():
        if name in wanted:
            continue
        if not _may_be_unused(name, result, wanted):
            raise DataError(
                f"{name}, of shape {tuple(value.shape)}, has no place in the config's model: "
                f"{_remedy(name, result)}"
            )
        unused_parts.add(_part(name))
    notes = []
    if missing_parts:
        notes.append(
            f"start from scratch, not being in the file: {', '.join(sorted(missing_parts))}"
        )
    if unused_parts:
        notes.append(f"in the file, but not used by this config: {', '.join(sorted(unused_parts))}")
    return notes


def read_class_order(text: str) -> tuple[str, ...]:
    """Class names from an option's value.

    Args:
        text: names joined by commas, or a file: COCO JSON (its categories in the order they stand
            in, which is how MMTracking numbers them), or text with a name a line.

    Raises:
        DataError: where the file has no categories, or names no class.
    """
    path = Path(text)
    names: Sequence[str]
    if path.suffix == ".json":
        names = read_classes_metadata(text)["thing_classes"]
    elif path.is_file():
        names = path.read_text().splitlines()
    else:
        names = text.split(",")
    names = [str(name).strip() for name in names if str(name).strip()]
    if not names:
        raise DataError(f"--class-order {text!r} names no class; join the names with commas")
    return tuple(names)


def _card(
    content: Mapping[str, Any], result: Conversion, cfg: CfgNode | None, source: Path
) -> ModelCard | None:
    """What the converted file says of its model: what the file said, if it is one of ours; else
    the config that a whole detector was checked against and its classes, where both are known."""
    card = read_card(content, source)
    if card is None and cfg is not None and result.detector and result.classes is not None:
        return ModelCard(config_to_plain(cfg), result.classes)
    return card


def _state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint, under their own names."""
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, Mapping):
        raise DataError("its state_dict is no dict of weights; give a checkpoint with weights")
    state = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in state.items()
    }
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        found = f"{wrong[0]!r} is a {type(state[wrong[0]]).__name__}" if wrong else "it is empty"
        raise DataError(
            f"does not hold a dict of weights ({found}); give a checkpoint with weights"
        )
    if all(key.startswith("module.") for key in state):  # saved from inside DataParallel
        state = {key[len("module.") :]: value for key, value in state.items()}
    return state


def _convert_detector(
    state: dict[str, Tensor], meta: Any, cfg: CfgNode | None, options: Options
) -> Conversion:
    detector = mmtracking.rename_detector(state)
    weights, notes = detector.weights, []
    kind = detector.description
    if detector.num_anchors is not None:
        num_ratios = options.num_ratios or _config_ratios(cfg) or 3
        weights = mmtracking.reorder_anchors(weights, num_ratios)
        num_scales = detector.num_anchors // num_ratios
        kind += f", {num_scales} scales x {num_ratios} ratios of anchors"
    classes = None
    if detector.num_classes is not None:
        kind += f", {detector.num_classes} classes"
        if options.new_classes:
            weights = mmtracking.drop_class_layers(weights)
            notes.append("class scores and boxes left out, as --new-classes asks")
        else:
            weights, classes, note = _order_classes(
                weights, detector.num_classes, meta, cfg, options
            )
            notes.append(note)
            notes += _note_box_scale(cfg, is_tracking="detector.backbone.conv1.weight" in state)
    prefix = "detector.backbone." if "detector.backbone.conv1.weight" in state else "backbone."
    return Conversion(
        weights=_own_tensors(weights),
        kind=kind,
        num_keys=len(state),
        left_out=detector.left_out,
        unplaced=detector.unplaced,
        notes=notes,
        classes=classes,
        detector=True,
        backbone_keys=resnet_facts(state, prefix).config_keys,
    )


def _take_over(state: dict[str, Tensor], options: Options) -> Conversion:
    """Weights under our own names, for another kind of file."""
    if options != Options():
        raise DataError(
            "has our own names, and is taken as it is: --class-order, --new-classes and "
            "--num-ratios are for weights of other projects"
        )
    detector = any(not key.startswith("backbone.") for key in state)
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    return Conversion(
        weights=_own_tensors({k: v for k, v in state.items() if k not in set(counters)}),
        kind=f"weights of clab_d2, {'a detector' if detector else 'a backbone'}",
        num_keys=len(state),
        left_out=counters,
        unplaced=[],
        detector=detector,
        backbone_keys="that these weights were trained with",
    )


def _convert_backbone(state: dict[str, Tensor]) -> Conversion:
    prefix = next((p for p in ("", "backbone.") if f"{p}layer1.0.conv1.weight" in state), None)
    if prefix is None:
        example = next(iter(state))
        if any(re.match(r"(backbone\.(bottom_up\.)?)?(stem\.conv1|res2)\.", key) for key in state):
            raise DataError(
                f"has Detectron2's own names already ({example}, ...); give it to MODEL.WEIGHTS as "
                "it is"
            )
        raise DataError(
            f"is neither an MMTracking, MMDetection or CLAB checkpoint nor a torchvision ResNet "
            f"(its first weight is {example}); give one of these"
        )
    facts = resnet_facts(state, prefix)
    weights, left_out, unplaced = convert_resnet(state, prefix)
    origin = "torchvision-style" if not prefix else "MMClassification-style"
    return Conversion(
        weights=_own_tensors(weights),
        kind=f"{origin} ImageNet weights, {facts}",
        num_keys=len(state),
        left_out=left_out,
        unplaced=unplaced,
        backbone_keys=facts.config_keys,
    )


def _order_classes(
    weights: dict[str, Tensor],
    num_classes: int,
    meta: Any,
    cfg: CfgNode | None,
    options: Options,
) -> tuple[dict[str, Tensor], tuple[str, ...] | None, str]:
    """Reorder the class layers where both orders are known; say which orders were taken."""
    theirs = options.class_order or _meta_classes(meta)
    ours = _wanted_classes(cfg)
    if theirs is None:
        if ours is not None and len(ours) == num_classes:
            return weights, ours, "classes taken as they stand: the file does not name them"
        return weights, None, "classes kept as they stand: the file does not name them"
    if ours is None or (cfg is None and set(theirs) != set(ours)):
        if options.class_order is not None:
            raise DataError(
                "--class-order needs to know the wanted order: give --config-file, with the "
                "dataset in DATASETS.TRAIN or TEST"
            )
        return weights, theirs, f"classes kept in the file's order: {', '.join(theirs)}"
    weights = mmtracking.reorder_classes(weights, theirs, ours)
    if tuple(theirs) == tuple(ours):
        return weights, ours, "classes stand in our order already"
    source = "--class-order" if options.class_order else "the file's meta data"
    return weights, ours, f"classes reordered from {source} to: {', '.join(ours)}"


def _meta_classes(meta: Any) -> tuple[str, ...] | None:
    if not isinstance(meta, Mapping):
        return None
    for holder in (meta, meta.get("dataset_meta")):
        if isinstance(holder, Mapping):
            names = holder.get("CLASSES", holder.get("classes"))
            if isinstance(names, str):  # a dataset of one class
                return (names,)
            if names:
                return tuple(str(name) for name in names)
    return None


def _wanted_classes(cfg: CfgNode | None) -> tuple[str, ...] | None:
    """Class names of the config's first dataset; without a config, ImageNet VID's."""
    if cfg is None:
        return IMAGENET_VID_CLASSES
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name in MetadataCatalog.list():
            classes = MetadataCatalog.get(name).get("thing_classes")
            return None if classes is None else tuple(classes)
    return None


def _config_ratios(cfg: CfgNode | None) -> int | None:
    return None if cfg is None else len(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0])


def _note_box_scale(cfg: CfgNode | None, is_tracking: bool) -> list[str]:
    """Boxes are regressed in units that the config sets; the weights do not tell which."""
    if cfg is None:
        return []
    usual = (5.0, 5.0, 5.0, 5.0) if is_tracking else (10.0, 10.0, 5.0, 5.0)
    given = tuple(float(value) for value in cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
    if given == usual:
        return []
    return [
        f"WARNING: MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS is {given}; such checkpoints are usually "
        f"trained with target_stds that correspond to {usual}"
    ]


def _must_be_there(name: str, result: Conversion) -> bool:
    if not result.detector:
        return name.startswith(BACKBONE_PREFIX)
    is_class_layer = name.startswith(_PREDICTOR)
    left_out = is_class_layer and not any(n.startswith(_PREDICTOR) for n in result.weights)
    return not (name.startswith(_TRAINING_ONLY) or left_out)


def _may_be_unused(name: str, result: Conversion, wanted: Mapping[str, Any]) -> bool:
    if result.detector:
        return name.startswith(_SWITCHABLE) and not any(n.startswith(_part(name)) for n in wanted)
    # A neck on res4 leaves res5 out of the model; ImageNet weights always have it.
    return not any(n.startswith(_part(name) + ".") for n in wanted)


def _part(name: str) -> str:
    """The module that a weight belongs to: the stage of a backbone, else two levels."""
    depth = 3 if name.startswith(BACKBONE_PREFIX) else 1 if name.startswith(_TRAINING_ONLY) else 2
    return ".".join(name.split(".")[:depth])


def _remedy(name: str, result: Conversion) -> str:
    text = next(text for prefix, text in _REMEDIES if name.startswith(prefix))
    return text.format(backbone=result.backbone_keys)


def _own_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full-precision tensors with storage of their own, so that no view drags more into a file."""
    return {
        name: (value.float() if value.is_floating_point() else value).detach().clone()
        for name, value in weights.items()
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
