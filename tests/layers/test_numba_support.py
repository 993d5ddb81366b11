from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from clab_d2.layers import numba_support
from clab_d2.layers.frame_attention import numba as frame_attention
from clab_d2.layers.most_similar import numba as most_similar


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 37])
def test_every_piece_is_done_once(threads, count, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    done = torch.zeros(count)

    def add(array: np.ndarray, amount: int, start: int, stop: int) -> None:
        array[start:stop] += amount

    numba_support.in_parallel(add, count, done, 3)
    assert (done == 3).all()


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    def fail(start: int, stop: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        numba_support.in_parallel(fail, 10)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_item_is_done_once_on_one_thread(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    done = []
    try:
        numba_support.each_on_one_thread(
            lambda item: done.append((item, torch.get_num_threads())), range(7)
        )
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == [(item, 1) for item in range(7)]


def test_an_error_for_an_item_reaches_the_caller(monkeypatch):
    before = torch.get_num_threads()

    def fail(item: int) -> None:
        if item == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        numba_support.each_on_one_thread(fail, range(5))
    assert torch.get_num_threads() == before


def test_double_precision_and_other_devices_are_left_to_pytorch():
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert numba_support.are_fit(single, single.half(), single.bfloat16())
    assert not numba_support.are_fit(double)
    assert not numba_support.are_fit(single, double)
    assert not numba_support.are_fit(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("backend", [most_similar, frame_attention], ids=lambda b: b.LOOPS)
def test_without_numba_nothing_is_compiled(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, backend.LOOPS, raising=False)
    monkeypatch.setattr(numba_support, "load_loops", numba_support.load_loops.__wrapped__)
    assert not backend.is_available(torch.zeros(1))
