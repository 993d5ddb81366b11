"""NT-Xent over two processes against one process with the whole batch: loss and gradients."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.layers import ShapeSpec
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from clab_d2.modeling.contrastive.branch import ContrastiveBranch

NUM_CLIPS, NUM_FRAMES = 4, 3


def make_branch() -> ContrastiveBranch:
    torch.manual_seed(0)
    return ContrastiveBranch(
        ShapeSpec(channels=6), in_feature="res4", conv_dim=8, hidden_dim=8, embed_dim=8
    ).double()


def make_features() -> torch.Tensor:
    """(clips, frames, C, h, w)"""
    generator = torch.Generator().manual_seed(1)
    shape = (NUM_CLIPS, NUM_FRAMES, 6, 4, 5)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def loss_of(branch: ContrastiveBranch, features: torch.Tensor) -> torch.Tensor:
    clips = [clip for clip in range(len(features)) for _ in range(NUM_FRAMES)]
    return branch(branch.embed(features.flatten(0, 1)), clips)


class WholeStep(torch.nn.Module):
    """Embedding and loss as one forward pass, which is what DDP wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = make_branch()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return loss_of(self.branch, features)


def run_rank(folder: str) -> None:
    share = make_features().chunk(comm.get_world_size())[comm.get_rank()]
    model = DistributedDataParallel(WholeStep())
    loss = model(share)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    torch.save((loss.detach(), gradients), Path(folder) / f"{comm.get_rank()}.pt")
    dist.barrier()


def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    launch(run_rank, 2, dist_url="auto", args=(str(tmp_path),))
    step = WholeStep()
    loss = step(make_features())
    loss.backward()
    for rank in range(2):
        rank_loss, gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        # The loss is computed in single precision.
        torch.testing.assert_close(rank_loss, loss.detach(), rtol=1e-6, atol=0)
        for actual, parameter in zip(gradients, step.parameters(), strict=True):
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-4, atol=1e-7)


def test_labels_are_unique_over_ranks(monkeypatch):
    seen = []
    branch = make_branch()
    monkeypatch.setattr(branch.loss, "forward", lambda embeddings, labels: seen.append(labels))
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        branch(torch.zeros(4, 8), [0, 1, 0, 1])
    assert seen[0].tolist() == [0, 1, 0, 1]
    assert seen[1].tolist() == [2, 3, 2, 3]
