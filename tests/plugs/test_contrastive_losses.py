"""Every contrastive loss that is registered."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import whole_detector
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from made_clips import losses_of, test_clips, training_clip
from registered import (
    assert_same_weights,
    by_config,
    by_constructor,
    quick_config,
    without_gradient,
)
from torch.nn.parallel import DistributedDataParallel

from clab_d2.modeling import CONTRASTIVE_LOSS_REGISTRY, ContrastiveFrame, ContrastiveLoss

NAMES = CONTRASTIVE_LOSS_REGISTRY.names()
SHAPE = ShapeSpec(channels=6, stride=16)
NUM_CLIPS = 4

each_loss = pytest.mark.parametrize("name", NAMES)


def config(name: str, *options: object) -> CfgNode:
    # Boxes that a loss moves at random would differ with the order in which they are drawn.
    still = ("MODEL.CONTRASTIVE.JITTER.AMOUNT", 0.0)
    return quick_config("MODEL.CONTRASTIVE.LOSS", name, *still, *options)


def make(name: str) -> ContrastiveLoss:
    return by_config(CONTRASTIVE_LOSS_REGISTRY.get(name), config(name), SHAPE).train()


def truth(clip: int, size: tuple[int, int]) -> Instances:
    """Two objects: of a class that another clip has, too, and of one that all have."""
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 60.0, 44.0]])
    return Instances(
        size,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.tensor([clip % 2, 4]),
        gt_tracks=torch.tensor([0, 1]),
    )


def made_frames(
    clips: range, *, sizes: bool = False, still: bool = False, objects: bool = True
) -> list[ContrastiveFrame]:
    """Key frames, then two references of each clip.

    Args:
        clips: which of the batch's clips, those of one process.
        sizes: whether clips differ in size.
        still: whether the first clip is a still, its own reference twice.
        objects: whether there are any.
    """

    def frame(clip: int, number: int) -> ContrastiveFrame:
        height, width = (5, 6) if sizes and clip % 2 else (4, 6)
        generator = torch.Generator().manual_seed(10 * clip + number)
        shape = (1, SHAPE.channels, height, width)
        size = (16 * height, 16 * width)
        instances = truth(clip, size)
        return ContrastiveFrame(
            feature=torch.randn(shape, generator=generator),
            image_size=size,
            clip=clip - clips.start,
            video=("made", clip),
            instances=instances if objects else instances[:0],
        )

    keys = [frame(clip, 0) for clip in clips]
    references = [
        keys[0] if still and clip == clips.start else frame(clip, number)
        for clip in clips
        for number in (1, 2)
    ]
    return keys + references


@each_loss
def test_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = CONTRASTIVE_LOSS_REGISTRY.get(name), config(name)
    assert_same_weights(by_config(entry, cfg, SHAPE), by_constructor(entry, cfg, SHAPE))


@each_loss
@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize("still", [False, True])
def test_gradients_reach_every_parameter_and_frame(name: str, sizes: bool, still: bool) -> None:
    loss = make(name)
    frames = made_frames(range(NUM_CLIPS), sizes=sizes, still=still)
    for frame in frames:
        frame.feature.requires_grad_()
    value = loss(frames)
    assert value.shape == ()
    assert torch.isfinite(value)
    assert value > 0
    value.backward()
    assert without_gradient(loss) == []
    assert all(frame.feature.grad.any() for frame in frames[:NUM_CLIPS])


@each_loss
@pytest.mark.parametrize("truths", ["none", "empty", "key frames"])
def test_with_little_or_nothing_to_contrast(name: str, truths: str) -> None:
    """One clip, and truth that is not there: still a finite loss of every parameter."""
    loss = make(name)
    frames = made_frames(range(1), objects=truths != "empty")
    for number, frame in enumerate(frames):
        if truths == "none" or (truths == "key frames" and number):
            frame.instances = None
    value = loss(frames)
    assert torch.isfinite(value)
    value.backward()
    assert without_gradient(loss) == []
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters() if p.requires_grad)


@each_loss
def test_the_order_of_clips_does_not_matter(name: str) -> None:
    """Built anew for each order, as a loss may remember batches."""
    frames = made_frames(range(NUM_CLIPS))
    expected = make(name)(frames)
    renumbered = [
        dataclasses.replace(frame, clip=NUM_CLIPS - 1 - frame.clip) for frame in frames
    ]
    ordered = sorted(renumbered[:NUM_CLIPS], key=lambda frame: frame.clip)
    ordered += sorted(renumbered[NUM_CLIPS:], key=lambda frame: frame.clip)
    torch.testing.assert_close(make(name)(ordered), expected)


def run_rank(folder: str) -> None:
    share = NUM_CLIPS // comm.get_world_size()
    clips = range(comm.get_rank() * share, (comm.get_rank() + 1) * share)
    results = {}
    for name in NAMES:
        loss = make(name)
        wrapped = DistributedDataParallel(loss) if list(loss.parameters()) else loss
        value = wrapped(made_frames(clips))
        value.backward()
        results[name] = value.detach(), [p.grad for p in loss.parameters()]
    torch.save(results, Path(folder) / f"{comm.get_rank()}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, for every method: they start once."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(run_rank, 2, dist_url="auto", args=(str(folder),))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@each_loss
def test_two_processes_equal_one_with_the_whole_batch(
    name: str, ranks: list[dict[str, Any]]
) -> None:
    """In loss and gradients."""
    whole = make(name)
    value = whole(made_frames(range(NUM_CLIPS)))
    value.backward()
    for rank in ranks:
        loss, gradients = rank[name]
        torch.testing.assert_close(loss, value.detach(), rtol=1e-5, atol=1e-6)
        for actual, parameter in zip(gradients, whole.parameters(), strict=True):
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-4, atol=1e-6)


@each_loss
def test_in_a_training(name: str) -> None:
    """With every gradient, also once the weight has fallen to nothing."""
    cfg = config(name)
    whole_detector.check_gradients(cfg)
    model = whole_detector.build(cfg).train()
    losses = losses_of(model, [training_clip(1), training_clip(2)], iteration=10**6)
    assert losses["loss_contrastive"].item() == 0
    sum(losses.values()).backward()
    assert without_gradient(model) == []


@each_loss
def test_detections_have_nothing_of_it(name: str) -> None:
    """Neither its weights nor its clips: the detector without the branch detects the same."""
    model = whole_detector.build(config(name)).eval()
    plain = whole_detector.build(config(name, "MODEL.CONTRASTIVE.ENABLED", False)).eval()
    state = model.state_dict()
    kept = {n: v for n, v in state.items() if not n.startswith("contrastive_branch.")}
    plain.load_state_dict(kept)
    for clip in test_clips(1, 2):
        whole_detector.assert_same_detections(model([clip])[0], plain([clip])[0])


@each_loss
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    whole_detector.check_yaml_round_trip(config(name), tmp_path)


@each_loss
def test_half_precision(name: str) -> None:
    whole_detector.check_half_precision(config(name))
