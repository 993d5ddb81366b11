"""Matrix products by the route that is fastest on this machine.

In single precision on a CPU, PyTorch multiplies matrices by one library and convolves by another,
and which of them is faster differs between processors by a factor of up to two. So the first large
product of each kind tries the routes on its own operands, and later ones take the fastest. Routes
differ in how they round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Multiply-adds from which it is worth trying: some milliseconds of one core.
WORTH_TRYING = 10**8
_TRIES = 3


def _by_product(rows: Tensor, others: Tensor) -> Tensor:
    return rows @ others.T


def _by_convolution(rows: Tensor, others: Tensor) -> Tensor:
    """The same as a 1x1 convolution of a map that is one position high."""
    image = rows.T[None, :, None]  # (1, C, 1, P), channels-last as it stands
    kernel = others[:, :, None, None]
    return F.conv2d(image, kernel)[0, :, 0].T


Route = Callable[[Tensor, Tensor], Tensor]
ROUTES: tuple[Route, ...] = (_by_product, _by_convolution)
_fastest: dict[tuple[int, ...], Route] = {}


def row_products(rows: Tensor, others: Tensor) -> Tensor:
    """Products of all rows with all others: ``rows @ others.T``, without gradients.

    Args:
        rows: (P, C).
        others: (Q, C).

    Returns:
        (P, Q), contiguous.
    """
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return _by_product(rows, others)
    # A graph that is being recorded has no place for tries.
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return _by_product(rows, others)
    if rows.shape[0] * rows.shape[1] * others.shape[0] < WORTH_TRYING:
        return _by_product(rows, others)
    key = _kind(rows, others)
    if key not in _fastest:
        _fastest[key] = min(ROUTES, key=lambda route: _seconds(route, rows, others))
    return _fastest[key](rows, others).contiguous()


def _kind(rows: Tensor, others: Tensor) -> tuple[int, ...]:
    """Products that are about as large, on as many threads, go by one route."""
    sizes = (*rows.shape, others.shape[0])
    return (torch.get_num_threads(), *(round(math.log2(size)) for size in sizes))


def _seconds(route: Route, rows: Tensor, others: Tensor) -> float:
    """The least of some tries, so that what else the machine does counts little."""
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        route(rows, others)
        taken.append(time.perf_counter() - start)
    return min(taken)
