"""The compiled loops give what PyTorch's operators give."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.modeling import cpu_kernels
from clab_d2.modeling.most_similar import BinInterpolation, MostSimilarSearch

needs_loops = pytest.mark.skipif(
    not cpu_kernels.are_available(torch.zeros(1)), reason="Numba is not installed"
)


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


def make_interpolation(num_bins: int, num_rows: int, samples: int) -> BinInterpolation:
    """Bins with repeated rows and with samples of no weight, as those of small RoIs have."""
    positions = torch.randint(0, num_rows, (num_bins, samples))
    weights = torch.rand(num_bins, samples)
    weights[torch.rand(num_bins, samples) < 0.2] = 0
    return BinInterpolation(positions, weights)


@needs_loops
def test_merged_samples_sum_to_the_same(threads):
    torch.manual_seed(0)
    interpolation = make_interpolation(50, 7, 16)
    interpolation.weights[3] = 0  # a bin outside the map
    lists = cpu_kernels.merge_samples(*interpolation)
    table = torch.randn(7, 5)
    used = torch.arange(lists.rows.shape[1]) < lists.counts[:, None]
    merged = (table[lists.rows.long()] * (lists.weights * used)[..., None]).sum(dim=1)
    torch.testing.assert_close(merged, interpolation.of(table))
    assert not lists.weights[~used].any()
    for rows, weights in zip(lists.rows, lists.weights, strict=True):
        chosen = rows[weights > 0]
        assert len(chosen) == len(set(chosen.tolist()))


@needs_loops
@settings(max_examples=30, deadline=None)
@given(
    num_bins=st.integers(1, 40),
    num_positions=st.integers(1, 1300),
    k=st.integers(1, 5),
    tile=st.sampled_from([64, 512, 700]),
    seed=st.integers(0, 1000),
)
def test_search_equals_top_k(num_bins, num_positions, k, tile, seed):
    torch.manual_seed(seed)
    key_rows, reference_rows = torch.randn(12, 8), torch.randn(num_positions, 8)
    interpolation = make_interpolation(num_bins, 12, 16)
    bins = interpolation.of(key_rows)
    search = MostSimilarSearch(key_rows, interpolation, bins.norm(dim=1), k)
    assert search._lists is not None
    found = search.in_map(reference_rows, tile)
    cosines = (bins / (bins.norm(dim=1, keepdim=True) + 1e-10)) @ (
        reference_rows / reference_rows.norm(dim=1, keepdim=True)
    ).T
    expected, _ = cosines.topk(min(k, num_positions), dim=1)
    torch.testing.assert_close(found.cosines, expected, atol=1e-5, rtol=1e-4)
    # Of equal cosines either position serves.
    torch.testing.assert_close(cosines.gather(1, found.positions), expected, atol=1e-5, rtol=1e-4)
    for positions in found.positions.tolist():
        assert len(set(positions)) == len(positions)


@needs_loops
def test_threads_do_not_change_the_search(threads):
    torch.manual_seed(0)
    interpolation = make_interpolation(37, 20, 16)
    key_rows, reference_rows = torch.randn(20, 8), torch.randn(600, 8)
    norms = interpolation.of(key_rows).norm(dim=1)
    found = MostSimilarSearch(key_rows, interpolation, norms, 2).in_map(reference_rows)
    lists = cpu_kernels.merge_samples(*interpolation)
    products = key_rows @ (reference_rows / reference_rows.norm(dim=1, keepdim=True)).T
    values = torch.full((37, 2), -torch.inf)
    positions = torch.zeros(37, 2, dtype=torch.long)
    cpu_kernels.search(products[:, :100].contiguous(), lists, 0, values, positions)
    cpu_kernels.search(products[:, 100:].contiguous(), lists, 100, values, positions)
    assert torch.equal(positions, found.positions)
    torch.testing.assert_close(values / norms[:, None], found.cosines)


def test_double_precision_is_left_to_pytorch():
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert not cpu_kernels.are_available(double)
    assert not cpu_kernels.are_available(single, double)


def test_without_numba_nothing_is_compiled(monkeypatch):
    monkeypatch.setitem(sys.modules, "clab_d2.modeling.cpu_loops", None)
    monkeypatch.setattr(cpu_kernels, "_loops", cpu_kernels._loops.__wrapped__)
    assert not cpu_kernels.are_available(torch.zeros(1))
