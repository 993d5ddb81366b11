"""The backends find what the formula finds, whatever the sizes, tiles and threads."""

from __future__ import annotations

import os

import formulas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.layers import numba_support
from clab_d2.layers.most_similar import cosines_at, find_most_similar, numba, pytorch, triton
from clab_d2.layers.roi_pooling import BinInterpolation

needs_numba = pytest.mark.skipif(
    not numba.is_available(torch.zeros(1)), reason="Numba is not installed"
)
TILED = [
    pytest.param(pytorch, id="pytorch"),
    pytest.param(numba, id="numba", marks=needs_numba),
]
# test_most_similar_triton.py runs these in Triton's interpreter, where there is no GPU.
TRITON_DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
ALL = [*TILED, pytest.param(triton, id="triton")]


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def make_interpolation(num_bins: int, num_rows: int, samples: int) -> BinInterpolation:
    """Bins with repeated rows and with samples of no weight, as those of small RoIs have."""
    positions = torch.randint(0, num_rows, (num_bins, samples))
    weights = torch.rand(num_bins, samples)
    weights[torch.rand(num_bins, samples) < 0.2] = 0
    return BinInterpolation(positions, weights)


def assert_most_similar(found, bins, references, k):
    """Of equal cosines either position serves."""
    close = {"atol": 1e-5, "rtol": 1e-4}
    for one, reference in zip(found, references, strict=True):
        cosines = formulas.cosines(bins, reference)
        expected = cosines.topk(min(k, len(reference)), dim=1).values
        torch.testing.assert_close(one.cosines.double(), expected, **close)
        torch.testing.assert_close(cosines.gather(1, one.positions), expected, **close)
        ascending = one.positions.sort(dim=1).values
        assert (ascending.diff(dim=1) > 0).all(), "a position was taken twice"


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_equals_the_formula(backend, k):
    device = TRITON_DEVICE if backend is triton else "cpu"
    if backend is triton and not triton.is_available(device):
        pytest.skip("no GPU here (test_in_interpreter runs this test without one)")
    torch.manual_seed(k)
    key_rows = torch.randn(12, 8).to(device)
    # One has fewer positions than are asked for.
    references = [torch.randn(length, 8).to(device) for length in (70, 3, 40)]
    interpolation = BinInterpolation(*(t.to(device) for t in make_interpolation(5, 12, 16)))
    bins = interpolation.of(key_rows)
    found = backend.search(bins, key_rows, interpolation, references, k)
    assert_most_similar(found, bins, references, k)


@pytest.mark.parametrize("backend", TILED)
@settings(max_examples=30, deadline=None)
@given(
    num_bins=st.integers(1, 40),
    num_positions=st.integers(1, 1300),
    k=st.integers(1, 5),
    tile=st.sampled_from([64, 512, 700]),
    seed=st.integers(0, 1000),
)
def test_tile_by_tile_equals_the_formula(backend, num_bins, num_positions, k, tile, seed):
    torch.manual_seed(seed)
    key_rows, reference = torch.randn(12, 8), torch.randn(num_positions, 8)
    interpolation = make_interpolation(num_bins, 12, 16)
    bins = interpolation.of(key_rows)
    found = backend.search(bins, key_rows, interpolation, [reference], k, tile=tile)
    assert_most_similar(found, bins, [reference], k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_takes_a_backend_that_fits(dtype, monkeypatch):
    """Double precision is searched in double precision, single precision without Numba, too."""
    monkeypatch.setattr(numba_support, "load_loops", lambda name: None)
    torch.manual_seed(0)
    key_rows, reference = torch.randn(12, 8, dtype=dtype), torch.randn(90, 8, dtype=dtype)
    interpolation = make_interpolation(20, 12, 16)
    bins = interpolation.of(key_rows)
    found = find_most_similar(bins, key_rows, interpolation, [reference], 2)
    assert found[0].cosines.dtype == dtype
    assert_most_similar(found, bins, [reference], 2)


def test_gives_no_gradient():
    key_rows = torch.randn(12, 8, requires_grad=True)
    interpolation = make_interpolation(20, 12, 16)
    bins = interpolation.of(key_rows)
    (found,) = find_most_similar(bins, key_rows, interpolation, [key_rows], 2)
    assert not found.cosines.requires_grad


@needs_numba
def test_merged_samples_sum_to_the_same(threads):
    torch.manual_seed(0)
    interpolation = make_interpolation(50, 7, 16)
    interpolation.weights[3] = 0  # a bin outside the map
    lists = numba.merge_samples(*interpolation)
    table = torch.randn(7, 5)
    used = torch.arange(lists.rows.shape[1]) < lists.counts[:, None]
    merged = (table[lists.rows.long()] * (lists.weights * used)[..., None]).sum(dim=1)
    torch.testing.assert_close(merged, interpolation.of(table))
    assert not lists.weights[~used].any()
    for rows, weights in zip(lists.rows, lists.weights, strict=True):
        chosen = rows[weights > 0]
        assert len(chosen) == len(set(chosen.tolist()))


@needs_numba
def test_threads_do_not_change_the_search(threads):
    torch.manual_seed(0)
    interpolation = make_interpolation(37, 20, 16)
    key_rows, reference = torch.randn(20, 8), torch.randn(600, 8)
    bins = interpolation.of(key_rows)
    (found,) = numba.search(bins, key_rows, interpolation, [reference], 2)
    lists = numba.merge_samples(*interpolation)
    products = key_rows @ (reference / reference.norm(dim=1, keepdim=True)).T
    values = torch.full((37, 2), -torch.inf)
    positions = torch.zeros(37, 2, dtype=torch.long)
    numba.keep_greatest(products[:, :100].contiguous(), lists, 0, values, positions)
    numba.keep_greatest(products[:, 100:].contiguous(), lists, 100, values, positions)
    assert torch.equal(positions, found.positions)
    torch.testing.assert_close(values / bins.norm(dim=1)[:, None], found.cosines)


@needs_numba
def test_threads_with_maps_of_their_own_find_the_same(threads):
    torch.manual_seed(0)
    interpolation = make_interpolation(37, 20, 16)
    key_rows = torch.randn(20, 8, requires_grad=True)
    references = [torch.randn(length, 8) for length in (600, 1, 33, 256, 40, 512, 513)]
    bins = interpolation.of(key_rows)
    found = numba.search(bins, key_rows, interpolation, references, 2)
    assert_most_similar(found, bins.detach(), references, 2)
    assert not any(one.cosines.requires_grad for one in found)


HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
AUTOCAST = pytest.mark.parametrize("autocast", [False, True], ids=["half", "autocast"])


def make_large(dtype: torch.dtype) -> tuple[BinInterpolation, torch.Tensor, torch.Tensor]:
    """Features whose squares, summed up over the channels, are beyond the range of fp16, which
    ends at 65504; some of them are all zero, as after a ReLU."""
    torch.manual_seed(0)
    interpolation = make_interpolation(20, 12, 16)
    key_rows = (12 + torch.randn(12, 512)).to(dtype)
    reference = (12 + torch.randn(40, 512)).to(dtype)
    interpolation.weights[3] = 0
    reference[5] = 0
    return interpolation, key_rows, reference


@pytest.mark.parametrize("backend", TILED)
@HALF
@AUTOCAST
def test_search_of_large_features_in_half_precision(backend, dtype, autocast):
    interpolation, key_rows, reference = make_large(dtype)
    bins = interpolation.of(key_rows)
    with torch.autocast("cpu", dtype, enabled=autocast):
        (found,) = backend.search(bins, key_rows, interpolation, [reference], 2)
    assert found.cosines.dtype == torch.float32
    expected = formulas.cosines(bins, reference).topk(2, dim=1).values
    close = {"atol": 16 * torch.finfo(dtype).eps, "rtol": 0.0}
    torch.testing.assert_close(found.cosines.double(), expected, **close)


@HALF
@AUTOCAST
def test_cosines_of_large_features_in_half_precision(dtype, autocast):
    interpolation, key_rows, reference = make_large(dtype)
    bins = interpolation.of(key_rows).requires_grad_(True)
    reference.requires_grad_(True)
    positions = torch.randint(len(reference), (len(bins), 2))
    positions[4] = 5
    with torch.autocast("cpu", dtype, enabled=autocast):
        cosines = cosines_at(bins, reference, positions)
    assert cosines.dtype == torch.float32
    expected = formulas.cosines(bins, reference).gather(1, positions)
    torch.testing.assert_close(cosines.double(), expected, atol=1e-5, rtol=1e-5)
    # A sum of cosines alone would have gradients next to 0, as all of them are next to 1.
    target = torch.randn_like(cosines)
    actual = torch.autograd.grad((cosines * target).sum(), (bins, reference))
    exact = [leaf.detach().double().requires_grad_(True) for leaf in (bins, reference)]
    cosines = formulas.cosines(*exact).gather(1, positions)
    expected = torch.autograd.grad((cosines * target).sum(), exact)
    # What is all zero has no direction to turn to.
    expected[0][3], expected[1][5] = 0, 0
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left.double(), right, atol=1e-5, rtol=2e-2)
