from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_item_is_done_once_on_one_thread(threads: int) -> None:
    done = []

    def note(item: int) -> int:
        done.append((item, torch.get_num_threads()))
        return -item

    assert numba_support.each_on_one_thread(note, range(7)) == [-item for item in range(7)]
    assert torch.get_num_threads() == threads
    assert sorted(done) == [(item, 1) for item in range(7)]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_items_see_the_callers_modes(threads: int, grad: bool, dtype: torch.dtype | None) -> None:
    a = torch.ones(2, 2, requires_grad=True)

    def product(item: int) -> torch.Tensor:
        time.sleep(0.01)  # so that every thread gets some
        return a @ a

    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=dtype is not None):
        products = numba_support.each_on_one_thread(product, range(6))
    assert [one.requires_grad for one in products] == [grad] * 6
    assert [one.dtype for one in products] == [dtype or torch.float32] * 6


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


def test_operators_threads_are_gone_while_loops_run(threads: int) -> None:
    """Those of this process, by their number; they come back with the next operator."""
    if threads == 1 or not Path("/proc/self/task").is_dir():
        pytest.skip("one thread, or no /proc")
    if numba_support._openmp_pause() is None:
        pytest.skip("OpenMP before 5")

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    numbers = torch.zeros(10**6)
    numbers.add(1)
    with_threads = count()
    numba_support.end_spinning_threads()
    assert count() == with_threads - (threads - 1)
    numbers.add(1)
    assert count() == with_threads
