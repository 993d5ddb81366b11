from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from clab_d2 import get_clab_cfg
from clab_d2.engine import build_optimizer
from clab_d2.errors import ConfigError


def config(**solver: object) -> CfgNode:
    cfg = get_clab_cfg()
    cfg.SOLVER.merge_from_other_cfg(CfgNode(solver))
    return cfg


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_sgd_and_adamw() -> None:
    model = model_with_gradients()
    sgd = build_optimizer(config(OPTIMIZER="SGD", MOMENTUM=0.8, NESTEROV=True), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.8
    assert sgd.defaults["nesterov"]
    assert isinstance(build_optimizer(config(OPTIMIZER="AdamW"), model), torch.optim.AdamW)


def test_unknown_optimizer() -> None:
    with pytest.raises(ConfigError, match=r"SOLVER\.OPTIMIZER 'Adam'"):
        build_optimizer(config(OPTIMIZER="Adam"), model_with_gradients())


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_weight_decay_of_normalisation_and_bias(name: str) -> None:
    model = model_with_gradients()
    cfg = config(
        OPTIMIZER=name,
        BASE_LR=0.5,
        WEIGHT_DECAY=0.1,
        WEIGHT_DECAY_NORM=0.2,
        WEIGHT_DECAY_BIAS=0.3,
        BIAS_LR_FACTOR=2.0,
    )
    found = {
        id(parameter): (group["weight_decay"], group["lr"])
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }
    expected = {
        id(model[0].weight): (0.1, 0.5),
        id(model[0].bias): (0.3, 1.0),
        id(model[1].weight): (0.2, 0.5),
        id(model[1].bias): (0.3, 1.0),
    }
    assert found == expected


@pytest.mark.parametrize("clip_value", [0.5, 100.0])
def test_full_model_clipping(clip_value: float) -> None:
    """One factor for all gradients, by the norm over all of them."""
    model = model_with_gradients()
    cfg = config(BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "full_model", clip_value
    before = [p.detach().clone() for p in model.parameters()]
    gradients = [p.grad.clone() for p in model.parameters()]
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    build_optimizer(cfg, model).step()
    factor = min(1.0, clip_value / norm)
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(old - parameter, gradient * factor)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_mixed_precision_unscales_before_clipping(name: str) -> None:
    """With and without a gradient scaler, the step is the same."""
    steps = []
    for scale in (1.0, 1024.0):
        model = model_with_gradients()
        cfg = config(OPTIMIZER=name, BASE_LR=0.1)
        clip = cfg.SOLVER.CLIP_GRADIENTS
        clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "full_model", 0.5
        optimizer = build_optimizer(cfg, model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.zeros(1))  # as the loss would be; makes the scale
        for parameter in model.parameters():
            parameter.grad *= scale
        scaler.step(optimizer)
        steps.append([p.detach().clone() for p in model.parameters()])
    for plain, scaled in zip(*steps, strict=True):
        torch.testing.assert_close(plain, scaled)


def test_detectron2s_own_clipping_stays() -> None:
    model = model_with_gradients()
    cfg = config(BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "value", 0.01
    before = [p.detach().clone() for p in model.parameters()]
    build_optimizer(cfg, model).step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert (old - parameter).abs().max() <= 0.01 + 1e-6
