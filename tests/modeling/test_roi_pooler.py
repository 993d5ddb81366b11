from __future__ import annotations

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from clab_d2.modeling.roi_pooler import FastROIPooler


def make_boxes(seed: int, count: int, extent: float) -> Boxes:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * extent
    return Boxes(torch.cat([corners.amin(1), corners.amax(1)], dim=1))


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
