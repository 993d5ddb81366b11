from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from clab_d2.layers import numba_support
from clab_d2.layers.frame_attention import embed_map
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.plain import plain_temporal_roi_align


def make_case(
    seed: int,
    *,
    channels: int = 8,
    num_rois: int = 4,
    size: int = 7,
    sides: tuple[tuple[int, int], ...] = ((6, 9), (6, 9), (5, 7)),
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Feature map, boxes, their RoIAlign, reference maps; in double precision."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    feature = random(channels, *sides[0])
    corners = torch.rand(num_rois, 2, 2, generator=generator, dtype=torch.float64)
    extent = torch.tensor([sides[0][1] * 16.0, sides[0][0] * 16.0], dtype=torch.float64)
    boxes = torch.cat([corners.amin(1) * extent, corners.amax(1) * extent], dim=1)
    pooled = roi_align(
        feature[None], [boxes], size, spatial_scale=1 / 16, sampling_ratio=2, aligned=True
    )
    return feature, boxes, pooled, [random(channels, *side) for side in sides[1:]]


def run(
    module: TemporalRoIAlign, case: tuple, counts: list[int] | None = None, **kwargs: object
) -> Tensor:
    feature, boxes, pooled, references = case
    return module(
        pooled,
        boxes,
        feature,
        references,
        counts or [1] * len(references),
        scale=1 / 16,
        sampling_ratio=2,
        **kwargs,
    )


@pytest.mark.parametrize("name", ["temporal_roi_align", "temporal_roi_align_mean"])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_equals_the_release(golden, name, with_gradients):
    arrays = np.load(golden(f"{name}.npz"))
    module = TemporalRoIAlign(
        32,
        num_most_similar=int(arrays["num_most_similar_points"]),
        num_heads=int(arrays["num_temporal_attention_blocks"]),
    )
    if module.embed is not None:
        module.embed.load_state_dict(
            {
                kind: torch.from_numpy(arrays[f"w/embed_network.conv.{kind}"])
                for kind in ("weight", "bias")
            }
        )
    feature = torch.from_numpy(arrays["feat"])
    rois = torch.from_numpy(arrays["rois"])
    scale, sampling_ratio = 1 / int(arrays["stride"]), int(arrays["sampling_ratio"])
    pooled = roi_align(
        feature, rois, int(arrays["output_size"]), scale, sampling_ratio, aligned=True
    )
    np.testing.assert_allclose(pooled.numpy(), arrays["roi_feats"], atol=1e-4)
    references = list(torch.from_numpy(arrays["ref_feats"]))
    with torch.set_grad_enabled(with_gradients):
        out = module(
            pooled,
            rois[:, 1:],
            feature[0],
            references,
            [1] * len(references),
            scale=scale,
            sampling_ratio=sampling_ratio,
        )
    np.testing.assert_allclose(out.detach().numpy(), arrays["out"], atol=1e-4)


@pytest.mark.parametrize("num_heads", [0, 2, 4])
@pytest.mark.parametrize("num_most_similar", [1, 2, 3])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_fast_way_equals_the_plain_formula(num_heads, num_most_similar, with_gradients):
    torch.manual_seed(num_heads)
    module = TemporalRoIAlign(8, num_most_similar, num_heads).double()
    case = make_case(seed=num_most_similar, num_rois=11)
    with torch.set_grad_enabled(with_gradients):
        actual = run(module, case)
    torch.testing.assert_close(actual, plain_temporal_roi_align(module, case[2], case[3]))


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "operators"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "anew"])
@pytest.mark.parametrize("num_heads", [0, 4])
@pytest.mark.parametrize("num_most_similar", [1, 2, 3])
@pytest.mark.parametrize("num_references", [1, 3, 5])
def test_single_precision(
    compiled, kept, num_heads, num_most_similar, num_references, monkeypatch
):
    """The compiled loops, and the operators that stand in for them, against double precision."""
    if not compiled:
        monkeypatch.setattr(numba_support, "load_loops", lambda name: None)
    torch.manual_seed(num_references)
    # More RoIs than are taken at a time.
    sides = ((6, 9), *[(6, 9), (5, 7), (30, 40), (6, 9), (2, 3)][:num_references])
    module = TemporalRoIAlign(8, num_most_similar, num_heads).double()
    case = make_case(seed=num_most_similar, num_rois=37, sides=sides)
    # A frame that is drawn more than once counts as often.
    counts = [1 + index % 3 for index in range(num_references)]
    repeated = [m for m, count in zip(case[3], counts, strict=True) for _ in range(count)]
    expected = plain_temporal_roi_align(module, case[2], repeated)
    feature, boxes, pooled, references = case
    single = (feature.float(), boxes.float(), pooled.float(), [r.float() for r in references])
    module.float()
    with torch.no_grad():
        encoded = [module.encode_map(reference) for reference in single[3]] if kept else None
        actual = run(module, single, counts, encoded=encoded)
        torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)
        # As at the next key frame of the video.
        torch.testing.assert_close(run(module, single, counts, encoded=encoded), actual)
    if kept and num_heads:
        assert all(one.embedded is not None for one in encoded)


def test_the_key_frame_among_its_references_is_embedded_once(monkeypatch):
    calls = []
    name = "clab_d2.modeling.aggregation.temporal_roi_align.embed_map"
    monkeypatch.setattr(name, lambda *args: calls.append(args) or embed_map(*args))
    module = TemporalRoIAlign(8)
    feature, boxes, pooled, references = make_case(seed=4, num_rois=9)
    references = [m.float() for m in (references[0], feature, references[1])]
    single = (references[1], boxes.float(), pooled.float(), references)
    with torch.no_grad():
        encoded = [module.encode_map(reference) for reference in references]
        actual = run(module, single, encoded=encoded)
        expected = plain_temporal_roi_align(module, pooled.float(), references)
    assert len(calls) == 3
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_maps_too_large_to_be_embedded_are_not(monkeypatch):
    """Then, and where there are few bins for the positions, bins are embedded one by one."""
    name = "clab_d2.modeling.aggregation.temporal_roi_align.EMBEDDED_BYTES"
    module = TemporalRoIAlign(8)
    for num_rois, limit in ((37, 1000), (1, 2**30)):
        monkeypatch.setattr(name, limit)
        case = make_case(seed=4, num_rois=num_rois, sides=((6, 9), (6, 9), (30, 40)))
        single = (*(part.float() for part in case[:3]), [m.float() for m in case[3]])
        with torch.no_grad():
            encoded = [module.encode_map(reference) for reference in single[3]]
            actual = run(module, single, encoded=encoded)
            expected = plain_temporal_roi_align(module, single[2], single[3])
        assert all(one.embedded is None for one in encoded)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_full_size():
    """The size of ImageNet VID: sums over 512 channels and 4608 products, RoIs of all sizes."""
    torch.manual_seed(0)
    height, width, num_rois = 38, 63, 300
    module = TemporalRoIAlign(512)
    # As after a ReLU: cosines lie close together, and many features are 0.
    maps = torch.randn(4, 512, height, width).relu()
    corners, sizes = torch.rand(num_rois, 2), torch.rand(num_rois, 2) ** 2
    extent = torch.tensor([16.0 * width, 16.0 * height])
    boxes = torch.cat([corners, (corners + sizes + 0.02).clamp(max=1)], dim=1) * extent.repeat(2)
    pooled = roi_align(maps[:1], [boxes], 7, spatial_scale=1 / 16, sampling_ratio=2, aligned=True)
    with torch.no_grad():
        actual = run(module, (maps[0], boxes, pooled, list(maps[1:])))
        expected = plain_temporal_roi_align(module, pooled, list(maps[1:]))
    difference = (actual - expected).abs().amax(dim=(1, 2, 3))
    # A bin whose second and third cosine are equal to rounding may take either.
    assert (difference < 1e-4).float().mean() > 0.97
    torch.testing.assert_close(actual.mean(), expected.mean(), atol=1e-6, rtol=1e-4)


def test_gradients_equal_the_plain_formula():
    torch.manual_seed(0)
    module = TemporalRoIAlign(8).double()
    feature, boxes, pooled, references = make_case(seed=3)
    leaves = [pooled, *references]
    for leaf in leaves:
        leaf.requires_grad_(True)
    target = torch.randn_like(pooled)
    parameters = list(module.parameters())
    fast = torch.autograd.grad(
        (run(module, (feature, boxes, pooled, references)) * target).sum(), leaves + parameters
    )
    plain = torch.autograd.grad(
        (plain_temporal_roi_align(module, pooled, references) * target).sum(), leaves + parameters
    )
    for left, right in zip(fast, plain, strict=True):
        torch.testing.assert_close(left, right)


def test_gradcheck():
    torch.manual_seed(0)
    module = TemporalRoIAlign(4, num_heads=2).double()
    feature, boxes, pooled, references = make_case(
        seed=5, channels=4, num_rois=1, size=2, sides=((3, 4), (3, 3))
    )

    def function(pooled: Tensor, reference: Tensor) -> Tensor:
        return run(module, (feature, boxes, pooled, [reference]))

    assert torch.autograd.gradcheck(
        function, (pooled.requires_grad_(True), references[0].requires_grad_(True))
    )


@pytest.mark.parametrize("num_heads", [0, 4])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_counts_equal_repeating_a_reference(num_heads, with_gradients):
    torch.manual_seed(0)
    module = TemporalRoIAlign(8, num_heads=num_heads).double()
    case = make_case(seed=7)
    repeated = [case[3][0], case[3][1], case[3][1], case[3][1]]
    with torch.set_grad_enabled(with_gradients):
        torch.testing.assert_close(
            run(module, case, counts=[1, 3]),
            plain_temporal_roi_align(module, case[2], repeated),
        )


def test_a_reference_smaller_than_k_positions():
    module = TemporalRoIAlign(8, num_most_similar=2).double()
    case = make_case(seed=1, sides=((4, 4), (1, 1)))
    assert torch.isfinite(run(module, case)).all()


def test_no_references_or_no_rois_leave_the_features_as_they_are():
    module = TemporalRoIAlign(8).double()
    feature, boxes, pooled, _ = make_case(seed=1)
    assert run(module, (feature, boxes, pooled, [])) is pooled
    assert run(module, (feature, boxes[:0], pooled[:0], [feature])).shape == (0, 8, 7, 7)


@pytest.mark.parametrize("num_heads", [0, 4])
@pytest.mark.parametrize("magnitude", [1.0, 12.0, 400.0], ids="{:g}".format)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_large_features_in_mixed_precision(num_heads, magnitude, dtype, with_gradients):
    """Features within the range of half precision, their products not: fp16 ends at 65504."""
    torch.manual_seed(0)
    module = TemporalRoIAlign(64, num_heads=num_heads).double()
    feature, boxes, _, references = make_case(seed=2, channels=64)
    # Frames that differ clearly; in each, as after a ReLU, a position where all is zero.
    maps = [
        (by * magnitude * m.abs()).to(dtype)
        for by, m in zip((1.0, 0.5, 1.5), (feature, *references), strict=True)
    ]
    for m in maps:
        m[:, 1, 2] = 0
    pooled = roi_align(
        maps[0][None].double(), [boxes], 7, spatial_scale=1 / 16, sampling_ratio=2, aligned=True
    ).to(dtype)
    expected = plain_temporal_roi_align(module, pooled.double(), [m.double() for m in maps[1:]])
    leaves = [pooled, *maps[1:]]
    for leaf in leaves:
        leaf.requires_grad_(with_gradients)
    module = module.float()
    with torch.set_grad_enabled(with_gradients), torch.autocast("cpu", dtype):
        actual = run(module, (maps[0], boxes.float(), pooled, leaves[1:]))
    assert actual.isfinite().all()
    difference = (actual.double() - expected).abs().amax(dim=1) / magnitude
    # Of two positions about as similar either may be taken, of frames the other.
    assert (difference < 32 * torch.finfo(dtype).eps).double().mean() > 0.9
    if with_gradients:
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(actual.float().mean() / magnitude, leaves + parameters)
        assert all(gradient.isfinite().all() for gradient in gradients)
