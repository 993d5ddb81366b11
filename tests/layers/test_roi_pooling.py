from __future__ import annotations

import formulas
import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from clab_d2.layers.roi_pooling import FastROIPooler, bin_interpolation
from clab_d2.layers.rows import map_rows


def make_boxes(seed: int, count: int, extent: float) -> Boxes:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * extent
    return Boxes(torch.cat([corners.amin(1), corners.amax(1)], dim=1))


@settings(max_examples=50, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(*[st.floats(-40, 200, width=32) for _ in range(4)]), min_size=1, max_size=5
    ),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    sampling_ratio=st.integers(1, 3),
    output_size=st.integers(1, 7),
)
def test_bin_interpolation_is_roi_align(boxes, height, width, sampling_ratio, output_size):
    corners = torch.tensor(boxes, dtype=torch.float64).view(-1, 2, 2)
    xyxy = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    feature = torch.randn(3, height, width, dtype=torch.float64)
    expected = roi_align(feature[None], [xyxy], output_size, 1 / 16, sampling_ratio, aligned=True)
    interpolation = bin_interpolation(xyxy, output_size, 1 / 16, sampling_ratio, height, width)
    bins = interpolation.of(map_rows(feature))
    actual = bins.view(len(xyxy), output_size, output_size, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("backend", ["pytorch", "torchvision"])
@pytest.mark.parametrize("sampling_ratio", [1, 2])
def test_equals_the_formula(backend, sampling_ratio):
    torch.manual_seed(0)
    feature = torch.randn(3, 8, 9, dtype=torch.float64)
    # One of them reaches beyond the map.
    boxes = Boxes(torch.cat([make_boxes(1, 4, 130).tensor, torch.tensor([[-30.0, 5, 99, 170]])]))
    pooler = FastROIPooler(3, [1 / 16], sampling_ratio, "ROIAlignV2", backend=backend)
    expected = formulas.roi_align(feature, boxes.tensor, 3, 1 / 16, sampling_ratio)
    torch.testing.assert_close(pooler([feature[None]], [boxes]), expected)


def test_refuses_a_backend_that_cannot():
    with pytest.raises(ValueError, match="positive sampling ratio"):
        FastROIPooler(7, [1 / 16], 0, "ROIAlignV2", backend="pytorch")


@pytest.mark.parametrize(
    "scales", [[1 / 16], [1 / 4, 1 / 8, 1 / 16]], ids=["one level", "three levels"]
)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equals_detectron2_with_gradients(scales, sampling_ratio):
    arguments = (7, scales, sampling_ratio, "ROIAlignV2")
    plain, fast = ROIPooler(*arguments), FastROIPooler(*arguments)
    torch.manual_seed(0)
    maps = [
        torch.randn(2, 5, int(400 * scale), int(500 * scale), dtype=torch.float64)
        for scale in scales
    ]
    for level in maps:
        level.requires_grad_(True)
    boxes = [make_boxes(1, 9, 400), make_boxes(2, 3, 60)]
    expected, actual = plain(maps, boxes), fast(maps, boxes)
    torch.testing.assert_close(actual, expected)
    target = torch.randn_like(expected)
    for left, right in zip(
        torch.autograd.grad((actual * target).sum(), maps),
        torch.autograd.grad((expected * target).sum(), maps),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("scales", [[1 / 16], [1 / 8, 1 / 16]])
def test_no_boxes(scales):
    fast = FastROIPooler(7, scales, 2, "ROIAlignV2")
    maps = [torch.randn(1, 5, 8, 9) for _ in scales]
    assert fast(maps, [make_boxes(0, 0, 1)]).shape == (0, 5, 7, 7)
