"""What a user is told of object sizes: by the check, and when a training starts."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import build_anchor_generator
from made_datasets import MakeDataset

from clab_d2 import get_clab_cfg
from clab_d2.data.object_sizes import ObjectBoxes
from clab_d2.engine import Trainer
from clab_d2.engine.size_check import anchors_of, finest_stride, size_report, strides_of
from clab_d2.errors import ConfigError

MakeCfg = Callable[..., CfgNode]


@pytest.fixture
def mini_vid(repo_root: Path) -> CfgNode:
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(repo_root / "configs/MiniVID/faster_rcnn.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def people(width: float, height: float) -> ObjectBoxes:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.7, 1.5, (60, 1))
    wh = scale * (width, height)
    xy = rng.random((60, 2)) * ((768, 576) - wh)
    return ObjectBoxes(np.concatenate([xy, wh], axis=1), np.tile((768, 576), (60, 1)))


@pytest.mark.parametrize("name", ["quick_schedules/clab_fpn_quick", "ImageNetVID/clab_R_50_DC5"])
def test_anchors_are_those_of_the_model(name: str, repo_root: Path) -> None:
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(repo_root / f"configs/{name}.yaml"))
    anchors = anchors_of(cfg)
    with torch.device("meta"):
        features = build_backbone(cfg).output_shape()
    generator = build_anchor_generator(cfg, [features[n] for n in cfg.MODEL.RPN.IN_FEATURES])
    assert list(anchors.strides) == list(generator.strides) == strides_of(cfg, features)
    for level, cells in enumerate(generator.cell_anchors):
        sizes = anchors.sizes[level if len(anchors.sizes) > 1 else 0]
        assert len(cells) == len(sizes) * len(anchors.ratios[0])
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    with pytest.raises(ConfigError, match="only the anchors of DefaultAnchorGenerator"):
        anchors_of(cfg)


def test_small_people_on_mini_vids_input(mini_vid: CfgNode) -> None:
    """Warned of, and what is proposed helps: taken, there is nothing left to warn of."""
    objects = people(31, 90)
    lines = size_report(mini_vid, objects)
    text = "\n".join(lines)
    assert "MIN_SIZE_TEST 128 MAX_SIZE_TEST 192 (frames 768x576 -> 171x128)" in text
    assert "strides 8: " in text and "IoU of 0.5 or more" in text
    warnings = [line for line in lines if line.startswith("warning: most objects are too small")]
    assert len(warnings) == 1 and "of the feature map (stride 8)" in warnings[0]

    assert lines[-2].startswith("proposed: sqrt(area) ") and "times as many pixels" in lines[-2]
    mini_vid.merge_from_list(shlex.split(lines[-1]))
    assert mini_vid.INPUT.MIN_SIZE_TEST > 300 and len(mini_vid.INPUT.MIN_SIZE_TRAIN) == 1
    again = size_report(mini_vid, objects)
    assert not [line for line in again if line.startswith("warning")]
    assert again[-1].endswith("suit these objects better: nothing to propose")


def test_objects_that_suit_and_large_ones(mini_vid: CfgNode) -> None:
    mini_vid.MODEL.RPN.BOUNDARY_THRESH = -1
    lines = size_report(mini_vid, people(160, 190))
    assert "nothing to propose" in lines[-1] and "half of" not in "\n".join(lines)
    lines = size_report(mini_vid, people(500, 450))
    assert "half of this input size" in "\n".join(lines) and "nothing to" not in "\n".join(lines)
    assert "0.25 times as many pixels: faster by" in lines[-2]
    mini_vid.merge_from_list(shlex.split(lines[-1]))
    assert (mini_vid.INPUT.MIN_SIZE_TEST, mini_vid.INPUT.MAX_SIZE_TEST) == (64, 96)
    assert mini_vid.INPUT.MIN_SIZE_TRAIN == (64,)
    mini_vid.INPUT.MIN_SIZE_TEST = 0  # frames as they are, which no key halves
    assert "half of" not in "\n".join(size_report(mini_vid, people(500, 450)))
    assert size_report(mini_vid, ObjectBoxes.from_records([])) == [
        "object sizes: there is no object to look at"
    ]


def test_a_training_warns_once(
    mini_vid: CfgNode,
    make_dataset: MakeDataset,
    make_cfg: MakeCfg,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """8x10 pixels where the finest map has 8 a cell; the loader is built twice."""
    model = torch.nn.Module()
    model.backbone = build_backbone(mini_vid)
    model.needs_references = model.needs_reference_truth = False
    assert finest_stride(mini_vid, model) == 8
    assert finest_stride(mini_vid, torch.nn.Module()) is None
    dataset = make_dataset((4,))
    cfg = make_cfg(dataset, **{"MODEL.DEVICE": "cpu", "MODEL.RPN.IN_FEATURES": ["c5"]})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Trainer.build_train_loader(cfg, model)
    told = [r.message for r in caplog.records if "most objects are too small" in r.message]
    assert len(told) == 1
    assert "the median is 10x8 pixels" in told[0] and "check_dataset.py --config-file" in told[0]

    caplog.clear()
    for annotation in dataset.data["annotations"]:
        annotation["bbox"] = [1, 1, 20, 20]
    dataset.save()
    with caplog.at_level(logging.WARNING):
        Trainer.build_train_loader(cfg, model)
    assert "too small" not in caplog.text
