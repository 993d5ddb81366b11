from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_contrast import make_frame, make_loss, make_truth

from clab_d2.modeling.contrastive.foreground_contrast import union_coverage

FINE = 4  # parts of a cell along each axis
SIZE = (5, 7)


@given(
    st.lists(
        st.tuples(
            st.integers(-3, FINE * SIZE[1] + 3),
            st.integers(-3, FINE * SIZE[0] + 3),
            st.integers(1, 20),
            st.integers(1, 20),
        ),
        max_size=5,
    )
)
def test_coverage_is_that_of_a_finer_grid(boxes):
    inside = torch.zeros(FINE * SIZE[0], FINE * SIZE[1])
    for x, y, width, height in boxes:
        inside[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = 1
    expected = inside.view(SIZE[0], FINE, SIZE[1], FINE).mean((1, 3))
    corners = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in boxes]).view(-1, 4) / FINE
    torch.testing.assert_close(union_coverage(corners.double(), SIZE), expected.double())


def test_coverage_is_exact_under_autocast():
    boxes = torch.tensor([[0.123, 1.456, 3.789, 4.321]])
    exact = union_coverage(boxes, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(union_coverage(boxes, SIZE), exact)


def test_background_does_not_count():
    loss = make_loss("ForegroundContrast")
    truth = make_truth([[32.0, 32.0, 64.0, 64.0]], [0], [0])
    frame, other = (make_frame(1, 0, 1, truth) for _ in range(2))
    # Two cells away, out of the conv's sight, all is different.
    other.feature.data[..., 6:] += 5.0
    features, frames = torch.cat([frame.feature, other.feature]), [frame, other]
    rows = loss.embed(features, frames)
    torch.testing.assert_close(rows[0], rows[1])
    whole = make_loss("ClipContrast").embed(features, frames)
    assert (whole[0] - whole[1]).abs().max() > 0.01


@pytest.mark.parametrize("box", [[0.0, 0.0, 128.0, 96.0], [-50.0, -50.0, 500.0, 500.0]])
def test_a_box_round_everything_gives_the_whole_frame(box):
    frame = make_frame(1, 0, 1, make_truth([box], [0], [0]))
    rows = make_loss("ForegroundContrast").embed(frame.feature, [frame])
    whole = make_loss("ClipContrast").embed(frame.feature, [frame])
    torch.testing.assert_close(rows[0], whole[0])


def test_overlapping_boxes_count_once():
    twice = [[10.0, 20.0, 70.0, 80.0], [10.0, 20.0, 70.0, 80.0], [15.0, 25.0, 30.0, 40.0]]
    first, second = (
        make_frame(1, 0, 1, make_truth(boxes, [0] * len(boxes), [0] * len(boxes)))
        for boxes in (twice[:1], twice)
    )
    rows = make_loss("ForegroundContrast").embed(
        torch.cat([first.feature, second.feature]), [first, second]
    )
    torch.testing.assert_close(rows[0], rows[1])


def test_a_box_beside_the_map_is_no_foreground():
    frame = make_frame(1, 0, 1, make_truth([[130.0, 0.0, 140.0, 20.0]], [0], [0]))
    assert len(make_loss("ForegroundContrast").embed(frame.feature, [frame])[0]) == 0
