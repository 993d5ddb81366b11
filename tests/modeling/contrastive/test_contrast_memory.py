from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clab_d2.errors import ConfigError
from clab_d2.modeling.contrastive.examples import Examples
from clab_d2.modeling.contrastive.memory import ContrastMemory


def numbered(start: int, stop: int) -> Examples:
    """Examples that tell their number everywhere."""
    numbers = torch.arange(start, stop)
    return Examples(numbers[:, None] + torch.zeros(3), numbers, numbers + 100, torch.ones(1))


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 7))
def test_holds_the_last_ones_whatever_the_batches_sizes(sizes, memory_size):
    memory, total = ContrastMemory(3, memory_size), 0
    for size in sizes:
        memory.add(numbered(total, total + size))
        total += size
        held = memory.examples()
        assert sorted(held.labels.tolist()) == list(range(max(total - memory_size, 0), total))
        assert (held.videos == held.labels + 100).all()
        assert (held.embeddings == held.labels[:, None]).all()


def test_state_holds_everything():
    memory, resumed = ContrastMemory(3, 4), ContrastMemory(3, 4)
    memory.add(numbered(0, 6))
    resumed.load_state_dict(memory.state_dict())
    for each in (memory, resumed):
        each.add(numbered(6, 9))
    for left, right in zip(memory.examples(), resumed.examples(), strict=True):
        assert torch.equal(left, right)


def test_forgets_on_demand():
    memory = ContrastMemory(3, 4)
    memory.add(numbered(0, 6))
    memory.reset_queue()
    assert len(memory.examples().labels) == 0


def test_labels_of_63_bits_pass_unchanged():
    memory, large = ContrastMemory(1, 2), torch.tensor([2**63 - 1, 5])
    memory.add(Examples(torch.zeros(2, 1), large, large, torch.ones(2)))
    assert memory.examples().labels.tolist() == large.tolist()


@pytest.mark.parametrize("size", [0, -3])
def test_impossible_size_names_the_key(size):
    with pytest.raises(ConfigError, match=r"MODEL\.CONTRASTIVE\.MEMORY_SIZE"):
        ContrastMemory(3, size)
