"""Networks of every kind, each trained and evaluated a step in a whole detector."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from made_clips import assert_same, build, losses_of, test_clips, training_clip
from torch import Tensor, nn

from clab_d2.engine.optimizer import build_optimizer, learning_rate_factors
from clab_d2.errors import ConfigError
from clab_d2.modeling import BottomUp, TemporalRCNN, TimmBackbone
from clab_d2.modeling.backbones.activation_checkpointing import checkpoint_activations
from clab_d2.modeling.backbones.base import bottom_up_of
from clab_d2.modeling.backbones.batch_norm import FixedStatisticsBatchNorm2d
from clab_d2.modeling.backbones.necks import NECKS
from clab_d2.modeling.optimize import prepare_for_inference

TINY_VIT = ["MODEL.VIT.SIZE", "Ti"]


def of_timm(name: str) -> list[str]:
    return ["MODEL.TIMM.NAME", name]


#: A network of each kind, small; what a config says to have it.
NETWORKS: dict[str, tuple[str, list[str]]] = {
    "ResNet": ("build_timm_backbone", of_timm("test_resnet")),
    "EfficientNet-Lite": ("build_timm_backbone", of_timm("tf_efficientnet_lite0")),
    "MobileNetV3": ("build_timm_backbone", of_timm("mobilenetv3_small_050")),
    "ConvNeXt": ("build_timm_backbone", of_timm("test_convnext")),
    "ByobNet": ("build_timm_backbone", of_timm("test_byobnet")),
    "NFNet": ("build_timm_backbone", of_timm("test_nfnet")),
    "MaxViT": ("build_timm_backbone", of_timm("test_maxvit")),
    "ViT of timm": ("build_timm_backbone", of_timm("test_vit")),
    "RegNet": ("build_regnet_backbone", ["MODEL.REGNET.NAME", "Y-200MF", "INPUT.FORMAT", "BGR"]),
    "Swin": ("build_swin_backbone", ["MODEL.SWIN.SIZE", "T"]),
    "ViT": ("build_vit_backbone", TINY_VIT),
}
PLAIN = {"ViT", "ViT of timm"}  # all maps of one stride

Make = Callable[..., CfgNode]


@pytest.fixture
def make(config: Make) -> Make:
    """A config for CLAB on one of the networks, under one scale ("c5") or a pyramid."""

    def load(kind: str, neck: str = "single_scale", *overrides: Any) -> CfgNode:
        builder, own = NETWORKS[kind]
        scale = "res4" if kind in PLAIN else "res3"
        in_features = ["res4"] if kind in PLAIN else ["res3", "res4"]
        cfg = config(
            "clab_quick" if neck == "single_scale" else "clab_fpn_quick",
            "MODEL.BACKBONE.NAME", f"build_{neck}_backbone",
            "MODEL.BACKBONE.BOTTOM_UP", builder,
            "MODEL.BACKBONE.FIX_BN_STATISTICS", True,
            "MODEL.NECK.IN_FEATURE", scale,
            "MODEL.CONTRASTIVE.IN_FEATURE", scale,
            *own,
        )  # fmt: skip
        if neck == "fpn":
            levels = ["p2", "p3", "p4", "p5", "p6"] if kind in PLAIN else ["p3", "p4", "p5"]
            cfg.MODEL.FPN.IN_FEATURES = in_features
            cfg.MODEL.RPN.IN_FEATURES = levels
            cfg.MODEL.ROI_HEADS.IN_FEATURES = levels[:-1]
            cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * 2**i] for i in range(len(levels))]
        cfg.merge_from_list(list(overrides))
        return cfg

    return load


def test_every_network_of_ours_is_tried() -> None:
    """So that a new one is tested by being registered."""
    ours = {name for name, make in BACKBONE_REGISTRY if make.__module__.startswith("clab_d2.")}
    assert {builder for builder, _ in NETWORKS.values()} == ours - {
        *NECKS,
        "build_resnet_dc5_backbone",  # in nearly every other test
    }


def train_a_step(model: TemporalRCNN, *sizes: tuple[int, int]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    clips = [training_clip(number, size) for number, size in enumerate(sizes, 1)]
    losses = losses_of(model, clips)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("neck", ["single_scale", "fpn"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_step_of_training_and_evaluation(make: Make, kind: str, neck: str) -> None:
    """Every parameter learns, statistics stay, and what is optimised finds the same."""
    cfg = make(kind, neck)
    model = build(cfg).train()
    before = copy.deepcopy(model.state_dict())
    losses = train_a_step(model, (64, 96))
    assert "loss_contrastive" in losses
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    build_optimizer(cfg, model).step()
    after = model.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in after if "running_" in n)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    learned = {name for name, p in model.named_parameters() if p.grad.abs().max() > 0}
    assert learned <= changed
    model.eval()
    prepared = prepare_for_inference(copy.deepcopy(model), cfg)
    clip = test_clips(0, 1)[0]
    assert_same(prepared([clip])[0], model([clip])[0])


@pytest.mark.parametrize("kind", NETWORKS)
def test_strides_and_channels_are_what_comes_out(make: Make, kind: str) -> None:
    backbone = build(make(kind)).backbone.eval()
    side = -(-96 // backbone.size_divisibility) * backbone.size_divisibility
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, side, 2 * side))
    assert maps.keys() == backbone.output_shape().keys()
    for name, shape in backbone.output_shape().items():
        expected = (1, shape.channels, side // shape.stride, 2 * side // shape.stride)
        assert tuple(maps[name].shape) == expected
        if name.startswith("res"):
            assert shape.stride == 2 ** int(name[3])


@pytest.mark.parametrize("kind", NETWORKS)
def test_shapes_are_known_without_memory_for_weights(make: Make, kind: str) -> None:
    cfg = make(kind)
    with torch.device("meta"):
        shapes = build_backbone(cfg).output_shape()
    assert shapes == build(cfg).backbone.output_shape()


@pytest.mark.parametrize("kind", NETWORKS)
def test_images_are_normalised_as_the_network_wants(make: Make, kind: str) -> None:
    """Whatever PIXEL_MEAN and PIXEL_STD say."""
    model = build(make(kind, "single_scale", "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]))
    expected = {
        "EfficientNet-Lite": ((127.5,) * 3, (127.5,) * 3),
        "RegNet": ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
        "NFNet": ((127.5,) * 3, (127.5,) * 3),
    }.get(kind)
    mean, std = model.pixel_mean.flatten().tolist(), model.pixel_std.flatten().tolist()
    if expected is not None:
        assert mean == pytest.approx(expected[0]) and std == pytest.approx(expected[1])
    data = getattr(bottom_up_of(model.backbone), "net", None)
    if data is not None:
        assert mean == pytest.approx([255 * value for value in data.pretrained_cfg["mean"]])


def test_flow_is_told_how_images_are_normalised(make: Make) -> None:
    """What works on the images themselves has to take the normalisation back."""
    cfg = make(
        "EfficientNet-Lite", "single_scale", "MODEL.AGGREGATION.MAPS", "FlowGuided",
        "MODEL.FLOW_GUIDED.FLOW_WEIGHTS", "random",
    )  # fmt: skip
    model = build(cfg)
    flow = model.map_aggregation.flow
    assert torch.equal(flow.pixel_mean, model.pixel_mean)
    assert torch.equal(flow.pixel_std, model.pixel_std)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_images_of_any_size(name: str) -> None:
    """Also where timm's model was made for images of one size."""
    backbone = TimmBackbone(name, ["res4"]).eval()
    assert backbone.size_divisibility == 16
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 48, 80))["res4"].shape[-2:] == (3, 5)


def test_windows_that_fit_nothing_else(make: Make) -> None:
    """Then images are padded to multiples of the size that the model was made for."""
    assert build(make("MaxViT")).backbone.size_divisibility == 160


def test_channels_in_the_other_order_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"want their images RGB; set INPUT\.FORMAT RGB"):
        build(make("ConvNeXt", "single_scale", "INPUT.FORMAT", "BGR"))


@pytest.mark.parametrize("kind", ["ConvNeXt", "Swin", "RegNet", "ViT", "ViT of timm"])
def test_the_branch_taps_any_map(make: Make, kind: str) -> None:
    """Also one that nothing else takes: a shallower one, or an earlier block's."""
    tapped = "res4_2" if kind in PLAIN else "res2"
    for neck in ("single_scale", "fpn"):
        model = build(make(kind, neck, "MODEL.CONTRASTIVE.IN_FEATURE", tapped)).train()
        losses = train_a_step(model, (64, 96), (64, 96))
        assert losses["loss_contrastive"].item() > 0
        assert tapped in bottom_up_of(model.backbone).output_shape()


@pytest.mark.parametrize("kind", NETWORKS)
def test_nothing_behind_the_deepest_map_is_made(make: Make, kind: str) -> None:
    cfg = make(kind)
    cut = sum(p.numel() for p in build(cfg).backbone.bottom_up.parameters())
    cfg.MODEL.BACKBONE.OUT_FEATURES = ["res4" if kind in PLAIN else "res5"]
    whole = sum(p.numel() for p in build(cfg).backbone.bottom_up.parameters())
    assert cut == whole if kind in PLAIN else cut < 0.8 * whole


@pytest.mark.parametrize("kind", NETWORKS)
def test_frozen_stages(make: Make, kind: str) -> None:
    """The stem with 1, then stage by stage; their batch norms keep their statistics, too."""
    off = ["MODEL.BACKBONE.FIX_BN_STATISTICS", False, "MODEL.BACKBONE.FREEZE_AT"]
    counts = []
    for freeze_at in (0, 1, 2):
        model = build(make(kind, "single_scale", *off, freeze_at)).train()
        network = bottom_up_of(model.backbone)
        frozen = {n: p.clone() for n, p in network.named_parameters() if not p.requires_grad}
        counts.append(len(frozen))
        statistics = {n: b.clone() for n, b in network.named_buffers() if "running" in n}
        train_a_step(model, (64, 96))
        for name, before in statistics.items():
            weight = network.get_submodule(name.rpartition(".")[0]).weight
            still = not weight.requires_grad
            assert torch.equal(network.get_buffer(name), before) == still, name
        ids = network.layer_ids()
        assert {ids[name] for name in frozen} <= set(range(max(ids.values())))
    assert 0 == counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("kind", NETWORKS)
def test_checkpointed_activations_change_nothing(make: Make, kind: str) -> None:
    """Two sizes, so two passes through the network before the backward pass."""
    cfg = make(kind)
    plain, checkpointed = build(cfg).train(), build(cfg)
    checkpoint_activations(checkpointed.backbone)
    checkpointed.train()
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    sizes = [(64, 96), (96, 64)]
    expected, actual = train_a_step(plain, *sizes), train_a_step(checkpointed, *sizes)
    for name, loss in expected.items():
        torch.testing.assert_close(actual[name], loss)
    for (name, left), right in zip(
        plain.named_parameters(), checkpointed.parameters(), strict=True
    ):
        torch.testing.assert_close(right.grad, left.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", NETWORKS)
def test_checkpointed_activations_are_not_held(make: Make, kind: str) -> None:
    held = []
    for checkpointed in (False, True):
        backbone = build(make(kind)).backbone.train()
        if checkpointed:
            checkpoint_activations(backbone)
        side = 2 * backbone.size_divisibility if kind == "MaxViT" else 128
        held.append(bytes_held(backbone, torch.rand(1, 3, side, side)))
    # Where a stage has a single block, its input is half of what it holds.
    assert held[1] < 0.9 * held[0]


def bytes_held(module: nn.Module, image: Tensor) -> int:
    """Memory that a graph keeps for the backward pass, parameters left out."""
    held: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no memory is used twice while it is counted

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept += module(image).values()
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    return sum(size for pointer, size in held.items() if pointer not in parameters)


def test_timms_batch_norms_would_count_twice(make: Make) -> None:
    cfg = make(
        "ResNet", "single_scale", "MODEL.BACKBONE.FIX_BN_STATISTICS", False,
        "MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS", True,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"count each batch twice.*FIX_BN_STATISTICS True"):
        build(cfg)


@pytest.mark.parametrize("kind", NETWORKS)
def test_learning_rates_fall_layer_by_layer(make: Make, kind: str) -> None:
    cfg = make(
        kind, "single_scale", "SOLVER.LAYER_DECAY", 0.5, "SOLVER.BACKBONE_MULTIPLIER", 0.1,
        "SOLVER.BASE_LR", 1.0, "SOLVER.OPTIMIZER", "AdamW",
    )  # fmt: skip
    model = build(cfg)
    network = model.backbone.bottom_up
    assert isinstance(network, BottomUp)
    ids = network.layer_ids()
    assert ids.keys() == {name for name, _ in network.named_parameters()}
    deepest = max(ids.values())
    assert set(ids.values()) == set(range(deepest + 1)) and deepest >= 2
    factor = learning_rate_factors(cfg, model)
    rates = {
        id(p): group["lr"] for group in build_optimizer(cfg, model).param_groups
        for p in group["params"]
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        below = name.removeprefix("backbone.bottom_up.")
        expected = 0.1 * 0.5 ** (deepest + 1 - ids[below]) if below != name else 1.0
        assert factor(name) == pytest.approx(expected)
        assert rates[id(parameter)] == pytest.approx(expected)
    first = next(iter(ids))
    assert ids[first] == 0, "a stem comes first"


@pytest.mark.parametrize("kind", ["ResNet", "EfficientNet-Lite", "MobileNetV3", "RegNet"])
def test_every_batch_norm_is_folded(make: Make, kind: str) -> None:
    cfg = make(kind)
    model = build(cfg)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(isinstance(m, FixedStatisticsBatchNorm2d) for m in norms)
    for norm in norms:
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.6, 1.5)
    prepared = prepare_for_inference(copy.deepcopy(model), cfg)
    assert not [m for m in prepared.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    clip = test_clips(0, 1)[0]
    assert_same(prepared([clip])[0], model.eval()([clip])[0])


@pytest.mark.parametrize("kind", ["ViT of timm", "Swin", "ViT"])
def test_drop_path(make: Make, kind: str) -> None:
    network = build(make(kind, "single_scale", "MODEL.BACKBONE.DROP_PATH", 0.5)).backbone
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        one, other = network.train()(image)["c5"], network(image)["c5"]
        assert not torch.equal(one, other)
        assert torch.equal(network.eval()(image)["c5"], network(image)["c5"])


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("ResNet", ["MODEL.TIMM.NAME", "resnot50"], "MODEL.TIMM.NAME 'resnot50' is no model"),
        ("MobileNetV3", ["MODEL.BACKBONE.DROP_PATH", 0.1, "MODEL.TIMM.NAME", "vgg11"],
         "MODEL.BACKBONE.DROP_PATH: timm's vgg11 has no drop path"),
        ("Swin", ["MODEL.SWIN.SIZE", "XL"], "MODEL.SWIN.SIZE is 'XL'; choose one of T, S, B, L"),
        ("ViT", ["MODEL.VIT.SIZE", "XL"], "MODEL.VIT.SIZE is 'XL'"),
        ("RegNet", ["MODEL.REGNET.NAME", "Z"], "MODEL.REGNET.NAME is 'Z'; choose one of X-200MF"),
        ("ConvNeXt", ["MODEL.NECK.IN_FEATURE", "res1"],
         "MODEL.NECK.IN_FEATURE 'res1' is no map of the backbone; choose among res2, res3"),
        ("ConvNeXt", ["MODEL.BACKBONE.OUT_FEATURES", ["c4"]], "MODEL.BACKBONE.OUT_FEATURES 'c4'"),
        ("ConvNeXt", ["MODEL.CONTRASTIVE.IN_FEATURE", "res9"], "MODEL.CONTRASTIVE.IN_FEATURE"),
        ("ConvNeXt", ["MODEL.RPN.IN_FEATURES", ["p2"]], "'p2' of IN_FEATURES is no map"),
        ("ConvNeXt", ["MODEL.BACKBONE.BOTTOM_UP", "nope"], "MODEL.BACKBONE.BOTTOM_UP 'nope'"),
        ("ConvNeXt", ["MODEL.BACKBONE.BOTTOM_UP", "build_single_scale_backbone"],
         "MODEL.BACKBONE.BOTTOM_UP 'build_single_scale_backbone' is no backbone"),
    ],
)  # fmt: skip
def test_mistakes_in_one_line(make: Make, kind: str, overrides: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(make(kind, "single_scale", *overrides))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_pyramid_of_maps_that_do_not_nest(make: Make) -> None:
    cfg = make("ConvNeXt", "fpn")
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res4"]
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.IN_FEATURES.*strides \[4, 16\]"):
        build(cfg)
