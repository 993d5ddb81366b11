"""Detectors with random weights that detect, and how alike detections are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from scipy.optimize import linear_sum_assignment
from torch import nn

from clab_d2.engine.config_file import load_config
from clab_d2.modeling import TemporalDense
from clab_d2.video import FrameResult


def random_config(config_file: object, *options: object) -> CfgNode:
    fixed = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    fixed += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.001"]
    return load_config(str(config_file), [*fixed, *map(str, options)], needs_datasets=False)


@torch.no_grad()
def random_detector(cfg: CfgNode) -> nn.Module:
    """Its scores and boxes differ from each other, unlike those of a model as it is initialised."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if isinstance(model, TemporalDense):
        _spread_predictions(model)
        return model
    model.roi_heads.box_predictor.cls_score.weight.mul_(60)
    model.roi_heads.box_predictor.bbox_pred.weight.mul_(20)
    model.proposal_generator.rpn_head.objectness_logits.weight.mul_(20)
    return model


def _spread_predictions(model: TemporalDense) -> None:
    """Of a one-stage detector."""
    network = model.dense_head.head
    for convs, factor in ((network.cls_score, 60), (network.bbox_pred, 20)):
        for conv in convs if isinstance(convs, nn.ModuleList) else [convs]:
            conv.weight.mul_(factor)
            if factor == 60:
                conv.bias.zero_()
    if model.prediction_aggregation is not None:
        model.prediction_aggregation.output.weight.mul_(60)


def moving_noise(seed: int, num_frames: int, height: int, width: int) -> list[np.ndarray]:
    """Frames of a coarse pattern that moves to the right, with some noise: in frames all alike
    positions are equally similar, and roundings choose among them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    frames = [np.roll(picture, 3 * number, axis=1) for number in range(num_frames)]
    noise = rng.integers(-20, 21, (num_frames, height, width, 3))
    return [np.clip(f + n, 0, 255).astype(np.uint8) for f, n in zip(frames, noise, strict=True)]


def assert_alike(
    ours: Iterable[FrameResult], theirs: Iterable[FrameResult], least: int = 1
) -> None:
    """The same detections in every frame: boxes to 0.1 pixels, scores to a thousandth.

    One in fifty may differ: features of random weights are so alike that a bin's second and third
    most similar position can be equal to rounding, and either is taken then.

    Args:
        ours, theirs: results of the same video.
        least: how many detections there are at least, so that something is compared.
    """
    found = differing = 0
    for one, other in zip(ours, theirs, strict=True):
        a, b = _arrays(one.instances), _arrays(other.instances)
        assert len(a[0]) == len(b[0])
        found += len(a[0])
        box = np.abs(a[0][:, None] - b[0]).max(axis=2)
        score = np.abs(a[1][:, None] - b[1])
        wrong = (box > 0.1) | (score > 1e-3) | (a[2][:, None] != b[2])
        rows, columns = linear_sum_assignment(wrong)
        differing += int(wrong[rows, columns].sum())
    assert found >= least
    assert differing <= found / 50, f"{differing} of {found}"


def _arrays(instances: Any) -> Sequence[np.ndarray]:
    boxes, scores, classes = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
    return np.asarray(boxes), np.asarray(scores), np.asarray(classes)
