"""Batch norms replaced by ones that keep their statistics, under the same names."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from timm.layers import BatchNormAct2d
from torch import nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.batch_norm import (
    FixedStatisticsBatchNorm2d,
    FixedStatisticsBatchNormAct2d,
    fix_batch_norm_statistics,
)


def network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"stem": nn.Sequential(nn.Conv2d(3, 4, 3), norm)})
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (nn.BatchNorm2d(4, eps=1e-2), FixedStatisticsBatchNorm2d),
        (nn.SyncBatchNorm(4, momentum=0.3), FixedStatisticsBatchNorm2d),
        (BatchNormAct2d(4, eps=1e-3, act_layer=nn.ReLU6), FixedStatisticsBatchNormAct2d),
    ],
    ids=["BatchNorm2d", "SyncBatchNorm", "BatchNormAct2d"],
)
def test_the_same_as_in_evaluation_and_trained_all_the_same(norm, kind):
    model = network(norm)
    names, optimizer = list(model.state_dict()), torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 3, 8, 8)
    expected = copy.deepcopy(model).eval()["stem"](x)
    fixed = fix_batch_norm_statistics(model).train()
    assert fixed is model and type(model["stem"][1]) is kind
    assert list(model.state_dict()) == names
    actual = model["stem"](x)
    torch.testing.assert_close(actual, expected)
    before = copy.deepcopy(model.state_dict())
    actual.square().sum().backward()
    optimizer.step()  # made before: the parameters are still the same
    for name, value in model.state_dict().items():
        still = "running" in name or "batches" in name
        assert torch.equal(value, before[name]) == still, name


def test_what_is_below_the_norm_goes_on_training():
    model = fix_batch_norm_statistics(
        network(BatchNormAct2d(4, drop_layer=nn.Dropout, act_layer=nn.ReLU))
    ).train()
    norm = model["stem"][1]
    assert (norm.training, norm.drop.training) == (False, True)
    model.eval()
    assert not norm.drop.training


def test_one_norm_at_two_places_stays_one():
    norm = nn.BatchNorm2d(4)
    model = fix_batch_norm_statistics(nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)}))
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], FixedStatisticsBatchNorm2d)


def test_frozen_and_other_norms_are_left():
    model = nn.Sequential(FrozenBatchNorm2d(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4))
    before = list(model)
    assert list(fix_batch_norm_statistics(model)) == before


def test_a_kind_that_is_not_known():
    class Odd(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(4)
            self.gate = nn.Linear(4, 4)

    with pytest.raises(ConfigError, match=r"FIX_BN_STATISTICS: Odd .* set it False"):
        fix_batch_norm_statistics(nn.Sequential(Odd()))
