from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_contrast import LOSSES, SHAPE, make_loss

from clab_d2 import get_clab_cfg
from clab_d2.errors import ConfigError
from clab_d2.modeling.contrastive.base import ContrastiveFrame
from clab_d2.modeling.contrastive.branch import ContrastiveBranch
from clab_d2.modeling.contrastive.clip_contrast import ClipContrast
from clab_d2.modeling.contrastive.embedding import Embedding
from clab_d2.modeling.contrastive.schedule import contrastive_weight

RENAMED = {"channel.0": "conv", "proj.0": "projection.0", "proj.2": "projection.2"}


@pytest.mark.parametrize("name", ["T2_B1", "T2_B2", "T4_B3"])
def test_loss_and_gradient_equal_the_release(golden, name):
    arrays = np.load(golden(f"contrastive_branch_{name}.npz"))
    features = torch.from_numpy(arrays["features"]).requires_grad_(True)
    embedding = Embedding(features.shape[1], 512, 256, 128)
    loss = ClipContrast(embedding, temperature=float(arrays["temperature"]))
    branch = ContrastiveBranch(in_feature="res4", loss=loss)
    branch.load_state_dict(
        {
            f"loss.embedding.{ours}.{kind}": torch.from_numpy(arrays[f"w/{theirs}.{kind}"])
            for theirs, ours in RENAMED.items()
            for kind in ("weight", "bias")
        }
    )
    num_keys, num_refs = int(arrays["num_keys"]), int(arrays["num_refs"])
    clips = list(range(num_keys)) + [c for c in range(num_keys) for _ in range(num_refs)]
    value = branch(
        [
            ContrastiveFrame(feature[None], (0, 0), clip, ("release", clip))
            for feature, clip in zip(features, clips, strict=True)
        ]
    )
    value.backward()
    assert value.item() == pytest.approx(float(arrays["loss"]), abs=1e-5)
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
        ContrastiveBranch(in_feature="c5", loss=make_loss("ClipContrast"), weight_schedule="step")


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_zero_loss_gives_every_parameter_a_zero_gradient(name):
    branch = ContrastiveBranch(in_feature="c5", loss=make_loss(name, memory_size=4))
    branch.zero_loss().backward()
    for parameter in branch.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_an_unknown_map_or_loss_names_the_key():
    cfg = get_clab_cfg()
    with pytest.raises(ConfigError, match=r"MODEL\.CONTRASTIVE\.IN_FEATURE.*'res4'.*'c5'"):
        ContrastiveBranch(cfg, {"c5": SHAPE})
    cfg.MODEL.CONTRASTIVE.LOSS = "Triplets"
    with pytest.raises(ConfigError, match=r"MODEL\.CONTRASTIVE\.LOSS 'Triplets'.*TrackContrast"):
        ContrastiveBranch(cfg, {"res4": SHAPE})
