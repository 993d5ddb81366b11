from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from made_clips import assert_same, build, losses_of, test_clips, training_clip
from torch import Tensor, nn

from clab_d2.layers import numba_support
from clab_d2.modeling import TimmBackbone
from clab_d2.modeling.optimize import (
    autocast_to,
    fold_batch_norms,
    precision_on,
    prepare_for_inference,
    to_channels_last,
)


def randomise_batch_norms(model: nn.Module) -> None:
    """Statistics as training leaves them; those of a new model change nothing."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.running_mean.data.uniform_(-0.2, 0.2)
            module.running_var.data.uniform_(0.6, 1.5)
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.uniform_(-0.2, 0.2)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", ""])
@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_batch_norm_is_the_conv_and_its_norm(norm, bias):
    torch.manual_seed(0)
    norms = {"BN": nn.BatchNorm2d(8), "FrozenBN": FrozenBatchNorm2d(8), "GN": nn.GroupNorm(2, 8)}
    conv = Conv2d(4, 8, 3, bias=bias, norm=norms.get(norm), activation=nn.ReLU())
    model = nn.Sequential(conv).eval()
    randomise_batch_norms(model)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        expected = model(x)
        folded = fold_batch_norms(model)
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert folded == (1 if norm in ("BN", "FrozenBN") else 0)
    assert (conv.norm is None) == (norm != "GN")


class TwoConsumers(nn.Module):
    """What the first conv gives goes to the norm, and past it; the others may be folded."""

    size_divisibility = 1

    def __init__(self) -> None:
        super().__init__()
        self.taken_twice, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.map, self.map_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.shared, self.norms = nn.Conv2d(4, 4, 1), nn.ModuleList([nn.BatchNorm2d(4)] * 2)
        self.last, self.last_norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.taken_twice(x)
        x = self.norm(x) + x
        raw = self.map(x)
        x = torch.relu_(self.map_norm(raw))
        for norm in self.norms:
            x = norm(self.shared(x))
        return {"raw": raw, "last": torch.relu_(self.last_norm(self.last(x)))}


class StandardisedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std()
        return nn.functional.conv2d(x, weight, self.bias)


def in_detector(backbone: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    detector = nn.Module()
    detector.backbone = backbone.eval()
    randomise_batch_norms(detector)
    return detector


@pytest.mark.parametrize("frozen", [False, True])
def test_only_what_nothing_else_takes_is_folded(frozen):
    detector = in_detector(TwoConsumers())
    detector.requires_grad_(not frozen)
    x = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        expected = detector.backbone(x)
        assert fold_batch_norms(detector) == 1
        assert isinstance(detector.backbone.last_norm, nn.Identity)
        for name, value in detector.backbone(x).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "left"), [("densenet121", 62), ("resnetv2_50", 16), ("hrnet_w18_small", 0)]
)
def test_folding_whatever_the_architecture(name, left):
    """Norms that come before their convs stay."""
    detector = in_detector(TimmBackbone(name))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = detector.backbone(x)
        assert fold_batch_norms(detector) > 20
        for key, value in detector.backbone(x).items():
            difference = (value - expected[key]).abs().max() / expected[key].abs().max()
            assert difference < 1e-4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in detector.modules()) == left


def test_a_conv_that_makes_more_of_its_weight_is_left():
    class Net(nn.Module):
        size_divisibility = 1

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = StandardisedConv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"map": self.norm(self.conv(x))}

    detector = in_detector(Net())
    before = copy.deepcopy(detector.state_dict())
    assert fold_batch_norms(detector) == 0
    assert all(torch.equal(v, before[n]) for n, v in detector.state_dict().items())


@pytest.mark.parametrize("name", ["clab_quick", "clab_fpn_quick", "faster_rcnn_quick"])
def test_detections_stay_the_same(config, name):
    cfg = config(name, "MODEL.RESNETS.NORM", "BN")
    model = build(cfg)
    randomise_batch_norms(model.backbone)
    prepared = prepare_for_inference(copy.deepcopy(model), cfg)
    assert not [m for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not prepared.training
    model.eval()
    for clip in test_clips(0, 3):
        assert_same(prepared([clip])[0], model([clip])[0])


def test_left_as_it_is_unless_asked(config):
    cfg = config("clab_quick", "TEST.OPTIMIZE", False)
    model = build(cfg)
    before = list(model.state_dict())
    prepare_for_inference(model, cfg)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["clab_quick", "clab_fpn_quick", "faster_rcnn_quick"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "operators"])
def test_mixed_precision_finds_about_the_same(config, name, precision, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(numba_support, "load_loops", lambda name: None)
    exact = build(config(name)).eval()
    mixed = build(config(name, "TEST.PRECISION", precision)).eval()
    mixed.load_state_dict(exact.state_dict())
    seen = []
    mixed.backbone.register_forward_hook(
        lambda module, arguments, output: seen.extend(m.dtype for m in output.values())
    )
    for clip in test_clips(0, 3):
        expected, actual = exact([clip])[0]["instances"], mixed([clip])[0]["instances"]
        assert actual.pred_boxes.tensor.dtype == actual.scores.dtype == torch.float32
        assert torch.isfinite(actual.pred_boxes.tensor).all()
        # Random weights find hundreds of boxes of about equal score, so only the scores compare.
        assert len(actual) > 0
        torch.testing.assert_close(actual.scores.max(), expected.scores.max(), atol=0.02, rtol=0)
    assert set(seen) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx512_f": True, "l1d_cache_size": 32768}, "fp32"),
    ],
)
def test_auto_is_what_the_cpu_has_units_for(capabilities, expected, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision_on("auto", cpu) == expected
    assert precision_on("fp16", cpu) == "fp16"
    with autocast_to("auto", cpu):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[expected]


def test_auto_where_pytorch_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision_on("auto", torch.device("cpu")) == "fp32"
    assert precision_on("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_auto_is_what_the_gpu_has_units_for(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_on("auto", torch.device("cuda")) == expected


def test_proposals_are_chosen_in_single_precision(config):
    model = build(config("clab_quick", "TEST.PRECISION", "bf16")).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (frame,) = model.extract([test_clips(0, 1)[0]["images"][0]])
    assert all(feature.dtype == torch.bfloat16 for feature in frame.features.values())
    assert frame.proposals.objectness_logits.dtype == torch.float32


def test_channels_last_changes_no_loss_and_no_gradient(config):
    model = build(config("clab_quick")).train()
    clips = [training_clip(seed) for seed in (0, 1)]
    results = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(0)  # what the samplers draw
        losses = losses_of(model, clips)
        sum(losses.values()).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((losses, gradients))
        to_channels_last(model)
    (losses, gradients), (again, gradients_again) = results
    for name, loss in losses.items():
        torch.testing.assert_close(again[name], loss, rtol=1e-4, atol=1e-6)
    for name, gradient in gradients.items():
        difference = (gradients_again[name] - gradient).norm()
        assert difference <= 1e-3 * gradient.norm() + 1e-6, name
