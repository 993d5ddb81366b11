from __future__ import annotations

import formulas
import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from clab_d2.layers.roi_pooling import FastROIPooler, bin_interpolation
from clab_d2.layers.rows import map_rows


def make_boxes(seed: int, count: int, extent: float) -> Boxes:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * extent
    return Boxes(torch.cat([corners.amin(1), corners.amax(1)], dim=1))


@settings(max_examples=50, deadline=None)
@example([(0.0, 0.0, 1.0, 2.0**-52)], 1, 1, 0, 1)
@given(
    boxes=st.lists(
        st.tuples(*[st.floats(-40, 200, width=32) for _ in range(4)]), min_size=1, max_size=5
    ),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    sampling_ratio=st.integers(0, 3),
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


def pool_in_half_precision(dtype, device, backend, pooler_type="ROIAlignV2"):
    """Objects anywhere in an image of 700x400, from maps of half precision: what is pooled, and
    what the same maps and boxes give in single precision, by Detectron2."""
    scales = [1 / 16, 1 / 32]
    arguments = (7, scales, 2, pooler_type)
    torch.manual_seed(0)
    # Small, and of both signs from one position to the next: a box that moves shows.
    maps = [torch.randn(1, 3, int(400 * scale), int(700 * scale)).to(dtype) for scale in scales]
    boxes = make_boxes(2, 30, 390)
    boxes.tensor[:, 0::2] += 300
    expected = ROIPooler(*arguments)([level.float() for level in maps], [boxes])
    pooler = FastROIPooler(*arguments, backend=backend)
    actual = pooler([level.to(device) for level in maps], [boxes.to(device)])
    return actual, expected


def assert_as_if_boxes_were_exact(actual, expected, dtype):
    assert actual.dtype == dtype
    # Weights and results may be rounded, positions may not.
    rounding = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.float().cpu(), expected, atol=rounding, rtol=rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True], ids=["half", "autocast"])
@pytest.mark.parametrize(
    ("backend", "pooler_type"),
    [
        ("pytorch", "ROIAlignV2"),
        ("torchvision", "ROIAlignV2"),
        ("torchvision", "ROIAlign"),
        (None, "ROIPool"),
    ],
)
def test_half_precision_does_not_round_boxes(backend, pooler_type, dtype, autocast):
    """The backend "torchvision" is what a GPU takes."""
    with torch.autocast("cpu", dtype, enabled=autocast):
        actual, expected = pool_in_half_precision(dtype, "cpu", backend, pooler_type)
    assert_as_if_boxes_were_exact(actual, expected, dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True], ids=["half", "autocast"])
def test_half_precision_on_gpu_does_not_round_boxes(dtype, autocast):
    with torch.autocast("cuda", dtype, enabled=autocast):
        actual, expected = pool_in_half_precision(dtype, "cuda", None)
    assert_as_if_boxes_were_exact(actual, expected, dtype)


@pytest.mark.parametrize("backend", ["pytorch", "torchvision"])
def test_gradients_of_half_precision(backend):
    maps = [torch.randn(1, 3, 9, 12).half().requires_grad_(True)]
    pooler = FastROIPooler(7, [1 / 16], 2, "ROIAlignV2", backend=backend)
    (actual,) = torch.autograd.grad(pooler(maps, [make_boxes(0, 4, 140)]).float().sum(), maps)
    precise = [level.detach().double().requires_grad_(True) for level in maps]
    pooled = ROIPooler(7, [1 / 16], 2, "ROIAlignV2")(precise, [make_boxes(0, 4, 140)])
    (expected,) = torch.autograd.grad(pooled.sum(), precise)
    torch.testing.assert_close(actual.double(), expected, atol=2e-2, rtol=1e-2)
