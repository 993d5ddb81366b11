"""Every route gives the product, and the fastest of them is taken from the first one on."""

from __future__ import annotations

import pytest
import torch

from clab_d2.layers import matrix_product
from clab_d2.layers.matrix_product import ROUTES, row_products


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch):
    monkeypatch.setattr(matrix_product, "_fastest", {})
    monkeypatch.setattr(matrix_product, "WORTH_TRYING", 1000)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("sizes", [(40, 16, 24), (1, 8, 300), (300, 8, 1)])
def test_routes_equal_the_product(route, sizes):
    torch.manual_seed(0)
    rows, others = torch.randn(sizes[0], sizes[1]), torch.randn(sizes[2], sizes[1])
    expected = (rows.double() @ others.double().T).float()
    torch.testing.assert_close(route(rows, others), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_of_any_type(dtype):
    rows, others = torch.randn(40, 16).to(dtype), torch.randn(30, 16).to(dtype)
    found = row_products(rows, others)
    assert found.dtype == dtype and found.is_contiguous()
    close = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, rows @ others.T, atol=16 * close, rtol=close)


def test_the_fastest_is_found_once_for_each_kind(monkeypatch):
    calls = []

    def route(name, seconds):
        def multiply(rows, others):
            calls.append(name)
            clock[0] += seconds
            return rows @ others.T

        return multiply

    clock = [0.0]
    monkeypatch.setattr(matrix_product.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(matrix_product, "ROUTES", (route("slow", 2.0), route("fast", 1.0)))
    rows, others = torch.randn(40, 16), torch.randn(30, 16)
    for _ in range(3):
        row_products(rows, others)
    tries = matrix_product._TRIES
    assert calls == ["slow"] * tries + ["fast"] * (tries + 3)
    # About as large: known already. Another number of threads: tried again.
    row_products(rows[:38], others)
    assert calls[-1] == "fast" and len(calls) == 2 * tries + 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    row_products(rows, others)
    assert len(calls) == 4 * tries + 5


def test_small_products_are_not_tried(monkeypatch):
    monkeypatch.setattr(matrix_product, "ROUTES", ())
    assert row_products(torch.ones(2, 3), torch.ones(4, 3)).eq(3).all()
