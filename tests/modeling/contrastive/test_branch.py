from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from hypothesis import given
from hypothesis import strategies as st

from clab_d2.errors import ConfigError
from clab_d2.modeling.contrastive.branch import ContrastiveBranch, contrastive_weight

RENAMED = {"channel.0": "conv", "proj.0": "projection.0", "proj.2": "projection.2"}


@pytest.mark.parametrize("name", ["T2_B1", "T2_B2", "T4_B3"])
def test_loss_and_gradient_equal_the_release(golden, name):
    arrays = np.load(golden(f"contrastive_branch_{name}.npz"))
    features = torch.from_numpy(arrays["features"]).requires_grad_(True)
    branch = ContrastiveBranch(
        ShapeSpec(channels=features.shape[1]),
        in_feature="res4",
        temperature=float(arrays["temperature"]),
    )
    branch.load_state_dict(
        {
            f"{ours}.{kind}": torch.from_numpy(arrays[f"w/{theirs}.{kind}"])
            for theirs, ours in RENAMED.items()
            for kind in ("weight", "bias")
        }
    )
    num_keys, num_refs = int(arrays["num_keys"]), int(arrays["num_refs"])
    clips = list(range(num_keys)) + [c for c in range(num_keys) for _ in range(num_refs)]
    loss = branch(branch.embed(features), clips)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss"]), abs=1e-5)
    np.testing.assert_allclose(features.grad.numpy(), arrays["grad"], atol=1e-5)


def test_weights_equal_the_release(golden):
    for start, steps, iteration, weight in json.loads(
        golden("loss_weight_schedule.json").read_text()
    ):
        actual = contrastive_weight(int(iteration), start=start, steps=int(steps))
        assert actual == pytest.approx(weight, abs=1e-9)


@given(
    iteration=st.integers(0, 10**6),
    steps=st.integers(0, 10**5),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_weight_falls_and_stays_at_zero(iteration, steps, schedule):
    now = contrastive_weight(iteration, start=0.5, steps=steps, schedule=schedule)
    later = contrastive_weight(iteration + 1, start=0.5, steps=steps, schedule=schedule)
    assert 0.0 <= later <= now <= 0.5
    if schedule != "constant" and iteration >= steps:
        assert now == pytest.approx(0.0, abs=1e-12)


def test_unknown_schedule_names_the_key():
    with pytest.raises(ConfigError, match=r"MODEL\.CONTRASTIVE\.WEIGHT\.SCHEDULE"):
        ContrastiveBranch(ShapeSpec(channels=4), in_feature="c5", weight_schedule="step")


def test_zero_loss_gives_every_parameter_a_zero_gradient():
    branch = ContrastiveBranch(ShapeSpec(channels=4), in_feature="c5")
    branch.zero_loss().backward()
    for parameter in branch.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
