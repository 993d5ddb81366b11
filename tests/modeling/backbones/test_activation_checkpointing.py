"""Activations that are computed again: same losses, gradients and statistics, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.utils import comm
from made_clips import build, losses_of, test_clips, training_clip
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clab_d2 import get_clab_cfg
from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones import activation_checkpointing
from clab_d2.modeling.backbones.activation_checkpointing import (
    CheckpointedStage,
    checkpoint_activations,
)

FIXED = "MODEL.BACKBONE.FIX_BN_STATISTICS"
KEY = "MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS"
State = dict[str, Tensor]


def build_one(cfg: CfgNode, checkpointed: bool) -> nn.Module:
    model = build(cfg)
    if checkpointed:
        checkpoint_activations(model.backbone)
    return model.train()


def train(model: nn.Module, steps: int = 2) -> tuple[State, State, State]:
    """Losses of the last step, gradients, and buffers (the running statistics among them)."""
    torch.manual_seed(1)
    for _ in range(steps):
        # Two sizes, so two passes through the backbone.
        losses = losses_of(model, [training_clip(1), training_clip(2, (48, 80))])
        sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return losses, gradients, {n: b.clone() for n, b in model.named_buffers()}


def assert_equal(left: State, right: State) -> None:
    assert left.keys() == right.keys() and left
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("freeze_at", [0, 2])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("name", ["clab_quick", "clab_fpn_quick"])
def test_same_losses_gradients_and_statistics(config, name, fixed, freeze_at):
    """The pyramid's branch taps a stage from outside, by a hook."""
    cfg = config(
        name, FIXED, fixed, "MODEL.BACKBONE.FREEZE_AT", freeze_at,
        "MODEL.CONTRASTIVE.IN_FEATURE", "res4",
    )  # fmt: skip
    plain, checkpointed = build_one(cfg, False), build_one(cfg, True)
    expected, actual = train(plain), train(checkpointed)
    for left, right in zip(actual, expected, strict=True):
        assert_equal(left, right)
    # What follows a step: no copy of a buffer has stayed, and the next step counts on.
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    assert_equal(train(checkpointed, 1)[2], train(plain, 1)[2])
    changed = [n for n, b in expected[2].items() if not torch.equal(b, build(cfg).get_buffer(n))]
    assert bool(changed) != fixed
    stages = [stage for stage in checkpointed.modules() if isinstance(stage, CheckpointedStage)]
    trained = len(checkpointed.backbone.bottom_up.stages) - (1 if freeze_at else 0)
    assert len(stages) == trained, "from the first trained one on"


def test_same_with_autocast(config):
    cfg = config("clab_quick", FIXED, False)
    results = []
    for checkpointed in (False, True):
        model = build_one(cfg, checkpointed)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(train(model, 1))
    for left, right in zip(*results, strict=True):
        assert_equal(left, right)


def test_long_stages_go_in_parts(config, monkeypatch):
    """As res4 of a ResNet-101: no more than so many blocks are computed again at once."""
    cfg = config("clab_quick", FIXED, False)
    expected = train(build_one(cfg, False))
    monkeypatch.setattr(activation_checkpointing, "_BLOCKS_AT_A_TIME", 1)
    for left, right in zip(train(build_one(cfg, True)), expected, strict=True):
        assert_equal(left, right)


def bytes_held(model: nn.Module) -> int:
    """Memory of what a step's graph keeps for the backward pass, parameters left out."""
    held: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no memory is used twice while it is counted

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses_of(model, [training_clip(1, (128, 192))])
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for pointer, size in held.items() if pointer not in parameters)


@pytest.mark.parametrize("name", ["clab_quick", "clab_fpn_quick"])
def test_the_graph_holds_less(config, name):
    cfg = config(name, FIXED, True)
    assert bytes_held(build_one(cfg, True)) < 0.6 * bytes_held(build_one(cfg, False))


@pytest.mark.parametrize("name", ["clab_quick", "clab_fpn_quick"])
def test_the_config_turns_it_on(config, name):
    assert not get_clab_cfg().MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS
    for on in (False, True):
        stages = build(config(name, KEY, on)).backbone.bottom_up.stages
        assert {isinstance(stage, CheckpointedStage) for stage in stages} == {on}


def test_a_backbone_without_resnet_is_refused():
    with pytest.raises(ConfigError, match=r"CHECKPOINT_ACTIVATIONS.*Linear has none; set it False"):
        checkpoint_activations(nn.Linear(2, 2))


def test_inference_is_left_alone(config, monkeypatch):
    cfg = config("clab_quick")
    plain, checkpointed = build_one(cfg, False).eval(), build_one(cfg, True).eval()
    monkeypatch.setattr(
        "clab_d2.modeling.backbones.activation_checkpointing.checkpoint",
        lambda *_, **__: pytest.fail(),
    )
    for clip in test_clips(1, 2):
        (left,), (right,) = plain([clip]), checkpointed([clip])
        assert torch.equal(left["instances"].scores, right["instances"].scores)


def step_in_two(root: str, folder: str) -> None:
    """One process: a step with and without, each with half of the clips."""
    torch.set_num_threads(1)
    cfg = get_clab_cfg()
    cfg.merge_from_file(f"{root}/configs/quick_schedules/clab_quick.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu"])
    results: list[Any] = []
    for checkpointed in (False, True):
        model = DistributedDataParallel(build_one(cfg, checkpointed), broadcast_buffers=False)
        torch.manual_seed(1)
        losses = losses_of(model, [training_clip(comm.get_rank() + 1)])
        sum(losses.values()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        results.append((losses, gradients, dict(model.named_buffers())))
    torch.save(results, Path(folder) / f"{comm.get_rank()}.pt")


def test_two_processes(repo_root: Path, tmp_path: Path) -> None:
    launch(step_in_two, 2, dist_url="auto", args=(str(repo_root), str(tmp_path)))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for plain, checkpointed in (first, second):
        for left, right in zip(checkpointed, plain, strict=True):
            assert_equal(left, right)
    assert_equal(first[1][1], second[1][1])
    assert not torch.equal(first[1][0]["loss_cls"], second[1][0]["loss_cls"])
