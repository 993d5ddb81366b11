"""Counts of a tiny detector against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from clab_d2.engine.launch import load_config
from clab_d2.inspection.model_analysis import ModelAnalysis, analyze_model

REFERENCES = 3
RESOLUTION = 64, 96


@pytest.fixture(scope="module")
def analysis(repo_root: Path) -> ModelAnalysis:
    path = repo_root / "configs" / "quick_schedules" / "clab_quick.yaml"
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"], needs_datasets=False)
    return analyze_model(cfg, RESOLUTION, REFERENCES)


@pytest.fixture(scope="module")
def cfg(repo_root: Path):
    path = repo_root / "configs" / "quick_schedules" / "clab_quick.yaml"
    return load_config(str(path), ["MODEL.DEVICE", "cpu"], needs_datasets=False)


def test_the_branch_costs_nothing_at_inference(analysis: ModelAnalysis) -> None:
    branch = analysis.training.part("contrastive_branch")
    assert branch.parameters > 0 and branch.multiply_adds > 0 and branch.activations > 0
    at_inference = analysis.inference.part("contrastive_branch")
    assert (at_inference.multiply_adds, at_inference.activations) == (0, 0)
    without = analysis.inference_without_branch
    assert without is not None
    assert without.total.multiply_adds == analysis.inference.total.multiply_adds
    assert without.total.activations == analysis.inference.total.activations
    assert without.total.parameters == analysis.inference.total.parameters - branch.parameters


def test_the_second_stage_by_hand(analysis: ModelAnalysis, cfg) -> None:
    rois, dim = cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.ROI_BOX_HEAD.FC_DIM
    layers, classes = cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert analysis.inference.what.startswith(f"inference: a key frame of {rois} RoIs")
    boxes = 1 if cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG else classes
    predictor = analysis.inference.part("roi_heads.box_predictor")
    assert predictor.multiply_adds == rois * dim * (classes + 1 + 4 * boxes)
    assert predictor.parameters == (dim + 1) * (classes + 1 + 4 * boxes)
    # Keys and values of its own proposals, queries, attention to all frames' proposals, output.
    frames = REFERENCES + 1
    selsa = analysis.inference.part("roi_heads.box_head.aggregations")
    attention = 2 * rois * (frames * rois) * dim
    assert selsa.multiply_adds == layers * (4 * rois * dim**2 + attention)
    assert selsa.parameters == layers * 4 * (dim + 1) * dim


def test_training_sees_the_backbone_once_a_frame(analysis: ModelAnalysis, cfg) -> None:
    frames = 1 + cfg.INPUT.REFERENCES.NUM
    backbone = analysis.training.part("backbone")
    assert backbone.multiply_adds == frames * analysis.inference.part("backbone").multiply_adds
    assert backbone.parameters == analysis.inference.part("backbone").parameters


def test_parts_make_up_the_whole(analysis: ModelAnalysis) -> None:
    names = [part.name for part in analysis.training.parts]
    assert len(names) == len(set(names))
    assert "roi_heads.roi_aggregation" in names
    assert all(
        min(part.parameters, part.multiply_adds, part.activations) >= 0
        for part in (*analysis.training.parts, *analysis.inference.parts)
    )
    # Nothing that multiplies in earnest is left without a count.
    heavy = {"aten::conv2d", "aten::convolution", "aten::bmm", "aten::mm", "aten::embedding_bag"}
    assert not heavy & set(analysis.inference.uncounted)
