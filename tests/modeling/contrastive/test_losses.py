"""Every registered contrastive loss, by what all of them owe their callers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain_contrast import (
    LOSSES,
    SHAPE,
    make_frame,
    make_frames,
    make_loss,
    make_truth,
    plain_loss,
    things,
    without_objects,
)

from clab_d2 import get_clab_cfg
from clab_d2.errors import ConfigError
from clab_d2.modeling import CONTRASTIVE_LOSS_REGISTRY
from clab_d2.modeling.contrastive.base import build_contrastive_loss

NAMES = sorted(LOSSES)
every_loss = pytest.mark.parametrize("name", NAMES)


def small_cfg(name: str, **values: object):
    cfg = get_clab_cfg()
    branch = cfg.MODEL.CONTRASTIVE
    branch.LOSS = name
    branch.CONV_DIM, branch.HIDDEN_DIM, branch.EMBED_DIM = 5, 7, 4
    cfg.merge_from_list([part for key, v in values.items() for part in (key, v)])
    return cfg


def test_every_registered_loss_of_ours_is_tested_here():
    ours = {name for name, entry in CONTRASTIVE_LOSS_REGISTRY if "clab_d2" in entry.__module__}
    assert ours == set(NAMES)


@every_loss
def test_value_and_gradients_are_the_formulas(name):
    frames, loss = make_frames(), make_loss(name)
    features = [frame.feature for frame in frames[:7]]
    actual, expected = loss(frames), plain_loss(name, things(name, loss, frames))
    torch.testing.assert_close(actual, expected.double())
    wanted = [*features, *loss.parameters()]
    for left, right in zip(
        torch.autograd.grad(actual, wanted, materialize_grads=True),
        torch.autograd.grad(expected, wanted, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


@every_loss
def test_gradients_reach_the_tapped_map_of_every_frame_that_takes_part(name):
    frames = make_frames()
    make_loss(name)(frames).backward()
    for frame in frames[:7]:
        takes_part = name == "ClipContrast" or bool(frame.instances)
        gradient = frame.feature.grad
        assert (gradient is not None and bool(gradient.any())) == takes_part


@every_loss
def test_order_of_clips_and_frames_plays_no_part(name):
    frames, loss = make_frames(), make_loss(name)
    renumbered = {0: 2, 1: 0, 2: 1}
    other = {id(frame): replace(frame, clip=renumbered[frame.clip]) for frame in frames}
    backwards = [other[id(frame)] for frame in reversed(frames)]
    torch.testing.assert_close(loss(backwards), loss(frames))


@every_loss
@pytest.mark.parametrize("memory_size", [0, 8])
def test_nothing_to_contrast_is_0_that_depends_on_the_parameters(name, memory_size):
    loss = make_loss(name, memory_size=memory_size)
    alone = make_truth([[4, 8, 50, 60]], [0], [7])
    batches = [[make_frame(n, 0, 1, alone) for n in range(3)]]  # one clip of one object
    if loss.needs_reference_truth:
        batches.append(without_objects(make_frames()))
    for frames in batches:
        loss.zero_grad()
        value = loss(frames)
        assert value.item() == 0
        value.backward()
        assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


@every_loss
def test_memory_counts_as_a_batch_that_holds_the_old_ones(name):
    """Old ones are no anchors, and have no gradient."""
    loss = make_loss(name, memory_size=1000)
    old, new = make_frames(), make_frames(100)
    new = [replace(frame, video=("made", frame.video[1] + 1)) for frame in new]  # 2 comes again
    old_things, new_things = things(name, loss, old), things(name, loss, new)
    torch.testing.assert_close(loss(old), plain_loss(name, old_things).double())
    for thing in old_things:
        thing.embedding = thing.embedding.detach()
    expected = plain_loss(name, new_things, old_things)
    actual = loss(new)
    torch.testing.assert_close(actual, expected.double())
    assert abs(actual - make_loss(name)(new)) > 1e-3
    for left, right in zip(
        torch.autograd.grad(actual, list(loss.parameters())),
        torch.autograd.grad(expected, list(loss.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(left, right)
    # Both batches are remembered now.
    third = make_frames(200)
    for thing in new_things:
        thing.embedding = thing.embedding.detach()
    remembered = [*old_things, *new_things]
    expected = plain_loss(name, things(name, loss, third), remembered)
    torch.testing.assert_close(loss(third), expected.double())


@every_loss
def test_state_restores_the_memory_exactly(name):
    loss, resumed = (make_loss(name, memory_size=9) for _ in range(2))
    loss(make_frames())
    loss(make_frames(50))
    resumed.load_state_dict(loss.state_dict())
    for seed in (100, 150):
        assert torch.equal(loss(make_frames(seed)), resumed(make_frames(seed)))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_loss_in_single(name, dtype):
    frames = make_frames()
    expected = make_loss(name)(frames)
    half = {id(f): replace(f, feature=f.feature.detach().to(dtype)) for f in frames}
    halved = [half[id(frame)] for frame in frames]
    for actual in (make_loss(name).to(dtype)(halved), _autocast(name, halved, dtype)):
        assert actual.dtype == torch.float32
        assert actual.item() == pytest.approx(expected.item(), rel=0.1)


def _autocast(name, frames, dtype):
    with torch.autocast("cpu", dtype):
        return make_loss(name, memory_size=5).float()(frames)


@every_loss
def test_config_and_constructor_build_the_same(name):
    cfg = small_cfg(name, **{"MODEL.CONTRASTIVE.JITTER.COPIES": 0})
    from_config = build_contrastive_loss(cfg, SHAPE)
    built = LOSSES[name]()
    assert from_config.needs_reference_truth == (name != "ClipContrast")
    from_config.load_state_dict(built.state_dict())
    if name == "ClassContrast":
        built.jitter, built.iou_gate, built.iou_weighting = from_config.jitter, 0.7, "none"
    frames = [replace(frame, feature=frame.feature.float()) for frame in make_frames()]
    assert torch.equal(from_config(frames), built(frames))
    assert not any("memory" in key for key in from_config.state_dict())
    remembering = small_cfg(name, **{"MODEL.CONTRASTIVE.MEMORY_SIZE": 12})
    memory = build_contrastive_loss(remembering, SHAPE).state_dict()["memory.embedding_memory"]
    assert memory.shape == (12, 4)


@every_loss
@pytest.mark.parametrize(("key", "value"), [("TEMPERATURE", 0.0), ("MEMORY_SIZE", -1)])
def test_impossible_values_name_the_key(name, key, value):
    cfg = small_cfg(name, **{f"MODEL.CONTRASTIVE.{key}": value})
    with pytest.raises(ConfigError, match=rf"MODEL\.CONTRASTIVE\.{key}"):
        build_contrastive_loss(cfg, SHAPE)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ClipContrast"])
def test_a_map_without_a_stride_is_told(name):
    with pytest.raises(ConfigError, match="stride"):
        build_contrastive_loss(small_cfg(name), replace(SHAPE, stride=None))
