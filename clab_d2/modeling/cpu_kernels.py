"""The two inner loops of Temporal RoI Align on a CPU, compiled by Numba where it is installed.

Both walk RoI by RoI, so that what a RoI needs stays in the core's cache, which a chain of PyTorch
operators, each over all RoIs, cannot do. Matrix products stay PyTorch's. Without Numba
(``pip install numba``) the same results come from PyTorch's operators alone, more slowly.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Pieces of work for each thread, as RoIs differ in cost.
_PIECES = 4
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def are_available(*tensors: Tensor) -> bool:
    """Whether the kernels can be used for these tensors: on a CPU, of single precision or less
    (they compute in single precision), and with Numba installed."""
    fit = all(t.device.type == "cpu" and t.dtype in _PRECISIONS for t in tensors)
    return fit and _loops() is not None


@functools.cache
def _loops() -> ModuleType | None:
    """The compiled loops; None without Numba, or with one that does not fit this Python."""
    try:
        return importlib.import_module("clab_d2.modeling.cpu_loops")
    # Numba raises RuntimeError where it finds no folder to keep compiled code in.
    except (ImportError, RuntimeError) as error:
        logger.debug("Temporal RoI Align runs without compiled loops: %s", error)
        return None


class SampleLists(NamedTuple):
    """The rows that each of N interpolated bins sums up, each row once.

    Attributes:
        rows: (N, S) row numbers, int32.
        weights: (N, S).
        counts: (N,) how many of them to sum up; the others have no weight.
    """

    rows: Tensor
    weights: Tensor
    counts: Tensor


def merge_samples(positions: Tensor, weights: Tensor) -> SampleLists:
    """Join the samples of a bin that read the same row: the smaller the RoI, the more there are.

    Args:
        positions: (N, S) row that each sample reads.
        weights: (N, S).
    """
    num_bins, samples = positions.shape
    # Three more, for the loops read four at a time.
    lists = SampleLists(
        torch.zeros(num_bins, samples + 3, dtype=torch.int32),
        torch.zeros(num_bins, samples + 3),
        torch.zeros(num_bins, dtype=torch.int64),
    )
    _in_parallel(_loops().merge_samples, num_bins, positions, weights, *lists)
    return lists


def search(
    correlation: Tensor, lists: SampleLists, first: int, values: Tensor, positions: Tensor
) -> None:
    """Merge the greatest values of interpolated rows of a correlation into the greatest so far.

    Args:
        correlation: (h * w, P) products of key positions with P reference positions.
        lists: the rows that make each of N bins.
        first: number of the first of the P positions.
        values: (N, K) the greatest so far, greatest first; updated.
        positions: (N, K) their positions; updated.
    """
    _in_parallel(
        _loops().search_bins, len(values), correlation, *lists, first, values, positions
    )


def attend(
    queries: Tensor,
    own: Tensor,
    embedded: Tensor,
    bias: Tensor,
    table: Tensor,
    positions: Tensor,
    weights: Tensor,
    log_counts: Tensor,
    output: Tensor,
) -> None:
    """Attention over frames of R RoIs, each with S x S bins; writes ``output``.

    Args:
        queries: (heads, R * S * S, 9, C) the embedding conv's transpose, applied to the own
            embedding of each bin and head, for each of the conv's offsets.
        own: (R, S, S, C) own features.
        embedded: (R, S, S, C) own embeddings.
        bias: (C,) of the embedding conv.
        table: (P, C) features of all positions of all T references.
        positions: (R * S * S, T, K) the most similar rows of ``table``.
        weights: (R * S * S, T, K) their weights.
        log_counts: (T,) logarithm of how often each reference counts.
        output: (R, S, S, C), contiguous.
    """
    _in_parallel(
        _loops().attend_rois, len(own), queries, own, embedded, bias, table, positions, weights,
        log_counts, output,
    )  # fmt: skip


def _in_parallel(function: Callable[..., None], count: int, *arguments: Any) -> None:
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
    futures = [_pool(threads).submit(function, *arguments, *piece) for piece in pieces]
    for future in futures:
        future.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="clab_d2-kernel")
