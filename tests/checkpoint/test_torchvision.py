"""ImageNet ResNets of torchvision: the same numbers come out of Detectron2's."""

from __future__ import annotations

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from their_weights import resnet_state

from clab_d2.checkpoint.torchvision import (
    BACKBONE_PREFIX,
    convert_resnet,
    rename_resnet_key,
    resnet_facts,
)
from clab_d2.errors import DataError


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def detectron2_resnet(depth: int, groups: int, width: int):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()


@pytest.mark.parametrize(
    ("name", "depth", "groups", "width"),
    [("resnet50", 50, 1, 64), ("resnext101_64x4d", 101, 64, 4)],
)
def test_features_equal_torchvisions(name, depth, groups, width):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # Statistics and scales of a trained net are not the 0 and 1 of a new one: with
                # those, it would not show if they were mixed up.
                module.weight.uniform_(0.5, 1.0)
                module.bias.uniform_(-0.2, 0.2)
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.8, 1.5)
    state = theirs.state_dict()
    weights, left_out, unplaced = convert_resnet(state)
    assert unplaced == []
    assert {key for key in left_out if "num_batches" not in key} == {"fc.weight", "fc.bias"}

    ours = detectron2_resnet(depth, groups, width)
    ours.load_state_dict({k[len(BACKBONE_PREFIX) :]: v for k, v in weights.items()}, strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        res2 = theirs.layer1(x)
        res5 = theirs.layer4(theirs.layer3(theirs.layer2(res2)))
        features = ours(image)
    torch.testing.assert_close(features["res2"], res2, rtol=1e-4, atol=1e-4)
    scale = res5.abs().max()
    torch.testing.assert_close(features["res5"] / scale, res5 / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("blocks", "groups", "width", "told"),
    [
        ((3, 4, 6, 3), 1, 64, "ResNet-50"),
        ((3, 4, 23, 3), 1, 64, "ResNet-101"),
        ((3, 4, 23, 3), 32, 8, "ResNeXt-101 32x8d"),
        ((3, 4, 23, 3), 64, 4, "ResNeXt-101 64x4d"),
        ((3, 8, 36, 3), 1, 64, "ResNet-152"),
        ((1, 1, 1, 1), 1, 64, "ResNet of unusual depth"),
    ],
)
def test_architecture_is_told_from_shapes(blocks, groups, width, told):
    with torch.device("meta"):
        state = {key: torch.empty(1) for key in resnet_keys(blocks)}
        inner = groups * width
        state["conv1.weight"] = torch.empty(64, 3, 7, 7)
        state["layer1.0.conv1.weight"] = torch.empty(inner, 64, 1, 1)
        state["layer1.0.conv2.weight"] = torch.empty(inner, width, 3, 3)
        state["layer1.0.conv3.weight"] = torch.empty(256, inner, 1, 1)
    facts = resnet_facts(state)
    assert str(facts) == told
    assert f"NUM_GROUPS {groups} MODEL.RESNETS.WIDTH_PER_GROUP {width} " in facts.config_keys


def resnet_keys(blocks) -> list[str]:
    return [
        f"layer{stage}.{block}.conv1.weight"
        for stage, count in enumerate(blocks, start=1)
        for block in range(count)
    ]


def test_basic_blocks_are_told_from_bottlenecks():
    state = torchvision.models.resnet18(weights=None).state_dict()
    assert str(resnet_facts(state)) == "ResNet-18"
    weights, _, unplaced = convert_resnet(state)
    assert unplaced == []
    assert f"{BACKBONE_PREFIX}res3.0.shortcut.norm.bias" in weights


def test_keys_without_a_place_are_named_and_prefixes_taken_off():
    state = resnet_state(prefix="backbone.")
    extra = {"head.fc.weight": torch.ones(1), "backbone.attention.weight": torch.ones(1)}
    weights, left_out, unplaced = convert_resnet({**state, **extra}, prefix="backbone.")
    assert unplaced == ["backbone.attention.weight"]
    assert "head.fc.weight" in left_out
    assert len(weights) + len(left_out) + len(unplaced) == len(state) + 2
    assert rename_resnet_key("layer2.0.conv4.weight") is None
    assert rename_resnet_key("bn1.num_batches_tracked") is None


def test_other_networks_are_refused():
    with pytest.raises(DataError, match=r"no conv1\.weight.*deep-stem"):
        resnet_facts({"stem.0.weight": torch.ones(1)})
