"""What the Numba backends share: whether they can be used, and their loops on several threads.

The loops walk RoI by RoI, so that what a RoI needs stays in the core's cache, which a chain of
PyTorch operators, each over all RoIs, cannot do. Matrix products stay PyTorch's. They stand in
modules of their own, ``numba_loops``, imported only where Numba is (``pip install numba``).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Pieces of work for each thread, as RoIs differ in cost.
_PIECES = 4
# Threads go, what they know stays (OpenMP 5.0, 3.2.44).
_PAUSE_SOFT = 1
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)

Item = TypeVar("Item")
Result = TypeVar("Result")
Loop = TypeVar("Loop", bound=Callable[..., Any])


def compile_loop(function: Loop) -> Loop:
    """Compile a loop over NumPy arrays when it is first called, and keep the result on disk.

    It releases the interpreter's lock, so that several threads can run one each on disjoint pieces
    of its output. Its sums may be reordered, which lets them run in vector registers; infinities
    stay what they are.

    Raises:
        ImportError: Numba is not installed.
        RuntimeError: Numba finds no folder to keep compiled code in.
    """
    import numba

    return numba.njit(
        nogil=True,
        cache=True,
        fastmath={"reassoc", "contract", "arcp", "nsz", "nnan"},
        error_model="numpy",
    )(function)


@functools.cache
def load_loops(name: str) -> ModuleType | None:
    """A module of compiled loops; None without Numba, or with one that does not fit this Python."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        logger.debug("%s: running without compiled loops: %s", name, error)
        return None


_turned_off = False


@contextlib.contextmanager
def without_loops() -> Iterator[None]:
    """Leave all to PyTorch's operators in this block, in all threads, as where Numba isn't."""
    global _turned_off
    before, _turned_off = _turned_off, True
    try:
        yield
    finally:
        _turned_off = before


def are_fit(*tensors: Tensor) -> bool:
    """Whether loops can take these: on a CPU, of single precision or less (they compute in single
    precision)."""
    if _turned_off:
        return False
    return all(t.device.type == "cpu" and t.dtype in _PRECISIONS for t in tensors)


def in_parallel(function: Callable[..., None], count: int, *arguments: Any) -> None:
    """Call ``function(*arguments, start, stop)`` for pieces of ``range(count)``, on as many threads
    as PyTorch takes; tensors become NumPy arrays."""
    arguments = tuple(
        argument.numpy() if isinstance(argument, Tensor) else argument for argument in arguments
    )
    threads = torch.get_num_threads()
    if threads == 1 or count <= 1:
        function(*arguments, 0, count)
        return
    step = -(-count // (threads * _PIECES))
    pieces = [(start, min(start + step, count)) for start in range(0, count, step)]
    _share_out(lambda piece: function(*arguments, *piece), pieces, threads)


def each_on_one_thread(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call a function for each item, on as many threads as PyTorch takes, which in turn takes one
    for each call. Gradients and autocast are on or off as in the caller's thread.

    For work that goes from PyTorch's operators to loops and back: an operator on several threads
    leaves them spinning for a while, in wait for the next one, where the loops want to run.

    Returns:
        What the calls return, in the items' order.
    """
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    results: dict[int, Result] = {}

    def call(number: int) -> None:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=autocast):
            results[number] = function(items[number])

    torch.set_num_threads(1)
    try:
        _share_out(call, range(len(items)), threads)
    finally:
        torch.set_num_threads(threads)
    return [results[number] for number in range(len(items))]


def _share_out(function: Callable[[Item], object], items: Sequence[Item], threads: int) -> None:
    end_spinning_threads()
    left = iter(items)

    def work() -> None:
        for item in left:  # each is taken once, by whichever thread is free
            function(item)

    helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        futures.wait(helpers)
    for helper in helpers:
        helper.result()


def end_spinning_threads() -> None:
    """End the threads that PyTorch's operators left, which its next operator starts again.

    After an operator they spin for some milliseconds in wait for the next one, on the cores that
    other threads are to run on. Where there are none, or this OpenMP can't, nothing happens.
    """
    pause = _openmp_pause()
    if pause is not None:
        pause(_PAUSE_SOFT)


@functools.cache
def _openmp_pause() -> Callable[[int], int] | None:
    """OpenMP 5's ``omp_pause_resource_all``, of the library that PyTorch has loaded."""
    try:
        return ctypes.CDLL(None).omp_pause_resource_all
    except (OSError, TypeError, AttributeError):  # the latter two: Windows, OpenMP before 5
        return None


@functools.cache
def _pool(threads: int) -> futures.ThreadPoolExecutor:
    """Threads on each of which PyTorch's operators take one."""
    return futures.ThreadPoolExecutor(
        threads,
        thread_name_prefix="clab_d2-numba",
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
