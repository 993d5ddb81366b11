"""Contrastive losses over two processes against one with the whole batch: loss and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from plain_contrast import LOSSES, make_frames, make_loss, without_objects
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clab_d2.modeling.contrastive.base import ContrastiveFrame
from clab_d2.modeling.contrastive.clip_contrast import ClipContrast
from clab_d2.modeling.contrastive.embedding import Embedding
from clab_d2.modeling.contrastive.whole_batch import gather_rows

SEEDS = (0, 100)
#: Which processes' frames have objects.
SEEING: dict[str, tuple[int, ...]] = {"both": (0, 1), "first": (0,), "second": (1,), "none": ()}
CASES = [(name, seeing) for name in sorted(LOSSES) for seeing in SEEING]


def shares_of(seed: int, seeing: str) -> list[list[ContrastiveFrame]]:
    """The frames of each process: two clips and one, with 5 objects and 4, if it has any."""
    frames = make_frames(seed)
    shares = [[f for f in frames if f.clip in (0, 1)], [f for f in frames if f.clip == 2]]
    # Distinct frames stay distinct, those listed twice stay one object.
    moved = {id(frame): replace(frame, clip=0) for frame in shares[1]}
    shares[1] = [moved[id(frame)] for frame in shares[1]]
    return [
        share if rank in SEEING[seeing] else without_objects(share)
        for rank, share in enumerate(shares)
    ]


def whole_batch(seed: int, seeing: str) -> list[ContrastiveFrame]:
    first, second = shares_of(seed, seeing)
    moved = {id(frame): replace(frame, clip=2) for frame in second}
    return [*first, *(moved[id(frame)] for frame in second)]


def steps(model: nn.Module, batches: Iterator[list[ContrastiveFrame]]) -> list[list[Tensor]]:
    """For each batch the loss and the gradients of all parameters."""
    results = []
    for frames in batches:
        model.zero_grad()
        loss = model(frames)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    return results


def run_rank(folder: str) -> None:
    rank = comm.get_rank()
    results = {}
    for case in CASES:
        loss = make_loss(case[0], memory_size=200)
        model = DistributedDataParallel(loss, broadcast_buffers=False)
        batches = (shares_of(seed, case[1])[rank] for seed in SEEDS)
        results[case] = (steps(model, batches), list(loss.memory.examples()))
    ragged = gather_rows(torch.full((3 * rank, 2), float(rank)))
    torch.save((results, ragged), Path(folder) / f"{rank}.pt")
    comm.synchronize()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """What both processes computed."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(run_rank, 2, dist_url="auto", args=(str(folder),))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("name", "seeing"), CASES)
def test_two_processes_equal_one_with_the_whole_batch(ranks, name, seeing):
    """In a first step and in a second, which has the first in its memory."""
    loss = make_loss(name, memory_size=200)
    expected = steps(loss, (whole_batch(seed, seeing) for seed in SEEDS))
    if seeing == "both":
        assert all(step[0] > 0 for step in expected)
    for results, _ in ranks:
        for actual, wanted in zip(results[name, seeing][0], expected, strict=True):
            for left, right in zip(actual, wanted, strict=True):
                torch.testing.assert_close(left, right)


@pytest.mark.parametrize(("name", "seeing"), CASES)
def test_both_processes_remember_the_whole_batch(ranks, name, seeing):
    (_, first), (_, second) = (results[name, seeing] for results, _ in ranks)
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left, right)
    loss = make_loss(name, memory_size=200)
    steps(loss, (whole_batch(seed, seeing) for seed in SEEDS))
    whole = loss.memory.examples()
    # Labels of clips are those of an iteration, and mean nothing later.
    for left, right in ((first[0], whole.embeddings), (first[2], whole.videos)):
        torch.testing.assert_close(left.sort(dim=0).values, right.sort(dim=0).values)


def test_rows_are_joined_also_where_a_process_has_none(ranks):
    for _, joined in ranks:
        assert joined.tolist() == [[1.0, 1.0]] * 3


def test_clips_are_numbered_over_ranks(monkeypatch):
    loss = ClipContrast(Embedding(6, 5, 7, 4)).double()
    labels = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        labels.append(loss.examples(make_frames()).labels.tolist())
    assert labels[0] == [0, 1, 2, 0, 0, 1, 1, 2, 2]
    assert labels[1] == [3 + clip for clip in labels[0]]
