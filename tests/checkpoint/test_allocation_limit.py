from __future__ import annotations

import pytest
import torch
from torch import nn

from clab_d2.checkpoint.allocation_limit import AllocationLimit, AllocationRefused


def test_what_fits_is_built() -> None:
    with AllocationLimit(1000) as limit:
        nn.Linear(10, 20)
        nn.BatchNorm2d(7)
    assert 220 + 4 * 7 <= limit.made <= 300


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(2**20, 2**20),
        lambda: nn.Conv2d(1000, 1000, 3),
        lambda: [nn.Linear(100, 100) for _ in range(10**9)],
        lambda: torch.zeros(2**40),
        lambda: torch.zeros(2**20, 2**20),
        lambda: torch.ones(size=(2**20, 2**20)),
        lambda: torch.randn(torch.Size([2**20, 2**20])),
        lambda: torch.full((2**20, 2**20), 1.0),
        lambda: torch.arange(2**40),
    ],
)
def test_what_does_not_is_refused_before_it_is_made(build) -> None:
    with AllocationLimit(10**6), pytest.raises(AllocationRefused, match="1,000,000 are plenty"):
        build()
