from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.errors import DataError
from clab_d2.modeling.reference_memory import (
    FrameFeatures,
    ReferenceMemory,
    References,
    RunningCat,
)


def make_frame(number: int) -> FrameFeatures:
    proposals = Instances((8, 8), proposal_boxes=Boxes(torch.zeros(1, 4)))
    return FrameFeatures({"c5": torch.full((1, 2, 3, 3), float(number))}, (8, 8), (), proposals)


def numbers_of(references) -> list[int]:
    return [int(frame.features["c5"][0, 0, 0, 0]) for frame in references.frames]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=5),
        min_size=1,
        max_size=8,
    )
)
@torch.no_grad()
def test_running_cat_equals_cat(calls):
    """Parts are (number, length): the same number and length is the same tensor."""
    tensors = {}
    cat = RunningCat()
    for parts in calls:
        chosen = [
            tensors.setdefault((number, length), torch.randn(2, length, 3))
            for number, length in parts
        ]
        assert torch.equal(cat("a", chosen, dim=1), torch.cat(chosen, dim=1))
        assert torch.equal(cat("b", chosen[:1]), chosen[0])


@torch.no_grad()
def test_running_cat_copies_only_what_is_new():
    cat = RunningCat()
    parts = [torch.randn(4, 3) for _ in range(3)]
    first = cat("rows", parts)
    first[:] = 7.0  # what is not copied again keeps this
    second = cat("rows", [parts[0], torch.ones(4, 3), parts[2]])
    assert second.data_ptr() == first.data_ptr()
    assert (second[:4] == 7).all() and (second[4:8] == 1).all() and (second[8:] == 7).all()


def test_running_cat_with_gradients_is_cat():
    cat, part = RunningCat(), torch.ones(2, 2, requires_grad=True)
    cat("rows", [part, part]).sum().backward()
    assert torch.equal(part.grad, torch.full((2, 2), 2.0))
    assert cat("rows", [part, part]) is not cat("rows", [part, part])


def test_a_window_keeps_the_places_of_the_frames_that_stay():
    memory = ReferenceMemory()
    for number in range(6):
        memory.put(number, make_frame(number))
    assert numbers_of(memory.references([0, 1, 2, 3])) == [0, 1, 2, 3]
    assert numbers_of(memory.references([1, 2, 3, 4])) == [4, 1, 2, 3]
    references = memory.references([2, 3, 4, 5, 5])
    assert numbers_of(references) == [4, 5, 2, 3]
    assert references.counts == [1, 2, 1, 1]
    assert numbers_of(memory.references([5, 2])) == [5, 2]


def test_unreadable_frames_are_left_out_and_unknown_ones_an_error():
    memory = ReferenceMemory()
    memory.begin(("set", 1), [0])
    memory.put(0, make_frame(0))
    memory.put(1, None)
    assert numbers_of(memory.references([0, 1])) == [0]
    with pytest.raises(DataError, match=r"frame 2 of video \('set', 1\).*in order"):
        memory.references([2])


def test_equal_counts_need_no_weights():
    frames = [make_frame(0), make_frame(1)]
    assert References(frames, [3, 3]).counts_of_proposals(torch.zeros(1)) is None
    assert References(frames, [3, 1]).counts_of_proposals(torch.zeros(1)).tolist() == [3, 1]


def test_another_video_is_another_memory():
    memory = ReferenceMemory()
    memory.begin((1,), [0])
    memory.put(0, make_frame(0))
    memory.begin((1,), [1, 2])
    assert 0 in memory
    memory.begin((2,), [3])
    assert len(memory) == 0


def test_a_video_that_starts_again_is_another_memory():
    memory = ReferenceMemory()
    memory.begin((1,), [4, 5])
    memory.put(4, make_frame(4))
    memory.begin((1,), [5])
    assert len(memory) == 0
