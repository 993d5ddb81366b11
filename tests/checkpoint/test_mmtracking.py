"""Names, anchor order and class order of MMTracking's detectors."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from hypothesis import given
from hypothesis import strategies as st
from their_weights import detector_state

from clab_d2.checkpoint import mmtracking
from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.errors import DataError

RPN = "proposal_generator.rpn_head"
PREDICTOR = "roi_heads.box_predictor"


def test_every_weight_of_a_clab_checkpoint_gets_its_place():
    state = detector_state()
    result = mmtracking.rename_detector(state)
    assert result.unplaced == []
    assert all(key.endswith("num_batches_tracked") for key in result.left_out)
    assert len(result.weights) + len(result.left_out) == len(state)
    for theirs, ours in {
        "detector.backbone.conv1.weight": "backbone.bottom_up.stem.conv1.weight",
        "detector.backbone.bn1.running_var": "backbone.bottom_up.stem.conv1.norm.running_var",
        "detector.backbone.layer1.0.bn2.running_mean": (
            "backbone.bottom_up.res2.0.conv2.norm.running_mean"
        ),
        "detector.backbone.layer4.0.downsample.0.weight": (
            "backbone.bottom_up.res5.0.shortcut.weight"
        ),
        "detector.backbone.layer4.0.downsample.1.bias": (
            "backbone.bottom_up.res5.0.shortcut.norm.bias"
        ),
        "detector.neck.convs.0.conv.bias": "backbone.neck.bias",
        "detector.rpn_head.rpn_conv.weight": f"{RPN}.conv.weight",
        "detector.roi_head.bbox_head.shared_fcs.1.bias": "roi_heads.box_head.fc2.bias",
        "detector.roi_head.bbox_head.aggregator.0.fc_embed.weight": (
            "roi_heads.box_head.aggregations.0.query.weight"
        ),
        "detector.roi_head.bbox_head.aggregator.0.ref_fc_embed.weight": (
            "roi_heads.box_head.aggregations.0.key.weight"
        ),
        "detector.roi_head.bbox_head.aggregator.1.ref_fc.weight": (
            "roi_heads.box_head.aggregations.1.value.weight"
        ),
        "detector.roi_head.bbox_head.aggregator.1.fc.weight": (
            "roi_heads.box_head.aggregations.1.output.weight"
        ),
        "detector.roi_head.bbox_head.fc_cls.weight": f"{PREDICTOR}.cls_score.weight",
        "detector.roi_head.bbox_head.fc_reg.bias": f"{PREDICTOR}.bbox_pred.bias",
        "detector.roi_head.bbox_roi_extractor.embed_network.conv.weight": (
            "roi_heads.roi_aggregation.embed.weight"
        ),
        "auxiliary.channel.0.weight": "contrastive_branch.loss.embedding.conv.weight",
        "auxiliary.proj.2.bias": "contrastive_branch.loss.embedding.projection.2.bias",
    }.items():
        assert result.weights[ours] is state[theirs]


def test_every_weight_of_the_golden_checkpoint_gets_its_place(golden):
    state = load_weights_file(golden("tiny_clab/checkpoint.pth"))["state_dict"]
    result = mmtracking.rename_detector(state)
    assert result.unplaced == []
    assert len(result.weights) == 315
    assert len(result.left_out) == 53
    assert (result.num_classes, result.num_anchors) == (30, 12)
    assert "CLAB release checkpoint, Temporal RoI Align, ResNet-50" in result.description


@pytest.mark.parametrize(
    ("parts", "description"),
    [
        ({"contrastive": False}, "MMTracking checkpoint, Temporal RoI Align"),
        ({"contrastive": False, "temporal_roi_align": False}, "MMTracking checkpoint, SELSA"),
        (
            {"contrastive": False, "temporal_roi_align": False, "selsa": False},
            "MMTracking checkpoint, Faster R-CNN",
        ),
        (
            {"contrastive": False, "temporal_roi_align": False, "selsa": False, "prefix": ""},
            "MMDetection checkpoint, Faster R-CNN",
        ),
    ],
)
def test_what_it_is_is_told_from_the_weights(parts, description):
    result = mmtracking.rename_detector(detector_state(**parts))
    assert result.description.startswith(description)
    assert result.unplaced == []


def test_keys_without_a_place_are_named():
    state = detector_state()
    strange = ["motion.conv.weight", "detector.neck.convs.1.conv.bias", "detector.backbone.x"]
    result = mmtracking.rename_detector({**state, **{key: torch.zeros(1) for key in strange}})
    assert result.unplaced == strange


def test_an_fpn_of_mmdetection_is_renamed():
    state = detector_state(
        num_scales=1, selsa=False, temporal_roi_align=False, contrastive=False, prefix=""
    )
    del state["neck.convs.0.conv.weight"], state["neck.convs.0.conv.bias"]
    for i in range(4):
        state[f"neck.lateral_convs.{i}.conv.weight"] = torch.full((8, 1, 1, 1), float(i))
        state[f"neck.fpn_convs.{i}.conv.weight"] = torch.full((8, 8, 3, 3), float(i))
    result = mmtracking.rename_detector(state)
    assert result.unplaced == []
    for i in range(4):
        assert (result.weights[f"backbone.fpn_lateral{i + 2}.weight"] == i).all()
        assert (result.weights[f"backbone.fpn_output{i + 2}.weight"] == i).all()


def mmdetection_anchors(sizes, ratios) -> list[tuple[float, float]]:
    """Widths and heights as MMDetection orders them; its ratio is height over width too."""
    return [(s / math.sqrt(r), s * math.sqrt(r)) for r in ratios for s in sizes]


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5, unique=True),
    ratios=st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), min_size=1, unique=True),
)
def test_each_anchor_keeps_the_channels_that_were_trained_for_it(sizes, ratios):
    # Every channel carries the width and height of the anchor that MMDetection trains it for.
    theirs = torch.tensor(mmdetection_anchors(sizes, ratios))
    deltas = torch.stack([theirs[:, 0], theirs[:, 1], theirs[:, 0] + 1, theirs[:, 1] + 2], dim=1)
    weights = {
        f"{RPN}.objectness_logits.weight": theirs[:, :, None, None],
        f"{RPN}.objectness_logits.bias": theirs[:, 0],
        f"{RPN}.anchor_deltas.weight": deltas.flatten()[:, None, None, None],
        f"{RPN}.anchor_deltas.bias": deltas.flatten(),
        "other": torch.ones(1),
    }
    result = mmtracking.reorder_anchors(weights, num_ratios=len(ratios))

    x1, y1, x2, y2 = DefaultAnchorGenerator.generate_cell_anchors(None, sizes, ratios).unbind(1)
    ours = torch.stack([x2 - x1, y2 - y1], dim=1)
    torch.testing.assert_close(result[f"{RPN}.objectness_logits.weight"][:, :, 0, 0], ours)
    torch.testing.assert_close(result[f"{RPN}.objectness_logits.bias"], ours[:, 0])
    expected = torch.stack([ours[:, 0], ours[:, 1], ours[:, 0] + 1, ours[:, 1] + 2], dim=1)
    torch.testing.assert_close(result[f"{RPN}.anchor_deltas.bias"], expected.flatten())
    torch.testing.assert_close(
        result[f"{RPN}.anchor_deltas.weight"][:, 0, 0, 0], expected.flatten()
    )
    assert result["other"] is weights["other"]


def test_the_order_of_anchors_of_the_golden_checkpoint(golden):
    state = load_weights_file(golden("tiny_clab/checkpoint.pth"))["state_dict"]
    weights = mmtracking.reorder_anchors(mmtracking.rename_detector(state).weights, num_ratios=3)
    theirs = state["detector.rpn_head.rpn_reg.bias"]
    ours = weights[f"{RPN}.anchor_deltas.bias"]
    for size in range(4):
        for ratio in range(3):
            i, j = 4 * (size * 3 + ratio), 4 * (ratio * 4 + size)
            assert torch.equal(ours[i : i + 4], theirs[j : j + 4])
    assert not torch.equal(ours, theirs)


def test_a_number_of_anchors_that_the_ratios_do_not_divide_is_refused():
    weights = mmtracking.rename_detector(detector_state(num_scales=4)).weights
    with pytest.raises(DataError, match=r"12 anchors a position, which 5 aspect.*--num-ratios"):
        mmtracking.reorder_anchors(weights, num_ratios=5)


def test_classes_are_reordered_and_background_stays_last():
    weights = {
        f"{PREDICTOR}.cls_score.weight": torch.tensor([[0.0], [1.0], [2.0], [9.0]]),
        f"{PREDICTOR}.cls_score.bias": torch.tensor([0.0, 1.0, 2.0, 9.0]),
        f"{PREDICTOR}.bbox_pred.weight": torch.arange(12.0)[:, None],
        f"{PREDICTOR}.bbox_pred.bias": torch.arange(12.0),
    }
    result = mmtracking.reorder_classes(weights, ("bus", "car", "fox"), ("fox", "bus", "car"))
    assert result[f"{PREDICTOR}.cls_score.bias"].tolist() == [2, 0, 1, 9]
    assert result[f"{PREDICTOR}.cls_score.weight"].flatten().tolist() == [2, 0, 1, 9]
    boxes = [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    assert result[f"{PREDICTOR}.bbox_pred.bias"].tolist() == boxes
    assert result[f"{PREDICTOR}.bbox_pred.weight"].flatten().tolist() == boxes
    back = mmtracking.reorder_classes(result, ("fox", "bus", "car"), ("bus", "car", "fox"))
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_boxes_shared_by_all_classes_are_not_reordered():
    weights = {
        f"{PREDICTOR}.cls_score.weight": torch.arange(3.0)[:, None],
        f"{PREDICTOR}.cls_score.bias": torch.arange(3.0),
        f"{PREDICTOR}.bbox_pred.weight": torch.arange(4.0)[:, None],
        f"{PREDICTOR}.bbox_pred.bias": torch.arange(4.0),
    }
    result = mmtracking.reorder_classes(weights, ("a", "b"), ("b", "a"))
    assert result[f"{PREDICTOR}.cls_score.bias"].tolist() == [1, 0, 2]
    assert result[f"{PREDICTOR}.bbox_pred.bias"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (("a", "b"), ("a", "b", "c"), "names 2 different classes and the checkpoint scores 3"),
        (("a", "a", "b"), ("a", "b", "c"), "names 2 different classes"),
        (("a", "b", "x"), ("a", "b", "c"), "'c' is not one of the checkpoint's"),
        (("a", "b", "c"), ("a", "b"), "'c' is not one of the dataset of the config's"),
    ],
)
def test_class_orders_that_do_not_match_are_refused(theirs, ours, message):
    weights = mmtracking.rename_detector(detector_state(num_classes=3)).weights
    with pytest.raises(DataError, match=message):
        mmtracking.reorder_classes(weights, theirs, ours)


def test_formats_whose_channels_mean_something_else_are_refused():
    state = detector_state()
    softmax = {**state, "detector.rpn_head.rpn_cls.weight": torch.zeros(24, 8, 1, 1)}
    with pytest.raises(DataError, match="use_sigmoid"):
        mmtracking.rename_detector(softmax)
    background_first = {**state, "detector.roi_head.bbox_head.fc_reg.weight": torch.zeros(16, 16)}
    with pytest.raises(DataError, match=r"MMDetection 1\.x"):
        mmtracking.rename_detector(background_first)
    without_stem = {k: v for k, v in state.items() if k != "detector.backbone.conv1.weight"}
    with pytest.raises(DataError, match=r"no detector\.backbone\.conv1\.weight"):
        mmtracking.rename_detector(without_stem)
