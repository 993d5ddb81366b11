"""The search for most similar positions, in all reference maps at once, fused, on a GPU.

Triton kernels keep only the K best of each bin: no matrix of similarities reaches memory. Two
routes:

* ``direct``: bins times reference positions, straight into the search. More arithmetic (270 G
  multiply-adds a key frame at 600x1000 with 15 maps), but all on tensor cores in half precision.
* ``interpolated``: cuBLAS multiplies the key map with the references (41 G), and the kernel sums a
  few rows of that for each bin. For single precision, where the arithmetic is what costs.

Triton is optional. It is imported at the first search on a GPU; where it is missing, or its kernels
do not compile, :func:`try_search` returns None, and the caller searches without it.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clab_d2.layers.most_similar.common import NORM_EPS, MostSimilar
from clab_d2.layers.roi_pooling.pytorch import BinInterpolation

logger = logging.getLogger(__name__)

Route = Literal["direct", "interpolated"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The kernels hold K running results for every bin in registers.
MAX_K = 8
# Correlations that the interpolated route holds at a time: whole references, at least one.
CORRELATION_BYTES = 2**28

# Devices and data types whose kernels failed: not tried again in this process.
_failed: set[tuple[torch.device, torch.dtype]] = set()


class Blocks(NamedTuple):
    """How a kernel cuts its work.

    Attributes:
        bins: RoI bins of one program; like the next two a power of two, and for the direct route
            at least 16.
        positions: reference positions of a tile.
        channels: channels multiplied at a time; None for the interpolated route.
        warps: warps of one program.
        stages: tiles under way from memory at a time.
        registers: limit for each thread; None for none.
    """

    bins: int
    positions: int
    channels: int | None
    warps: int
    stages: int
    registers: int | None = None


# Best first: a GPU whose shared memory does not suffice for one takes the next. The limit on
# registers lets two programs share a multiprocessor, so one's search hides in the other's product.
DIRECT_HALF = (
    Blocks(128, 128, 64, warps=8, stages=3, registers=128),
    Blocks(64, 128, 64, warps=4, stages=3),
    Blocks(64, 64, 32, warps=4, stages=2),
)
# Without tensor cores, larger tiles do not fit into registers.
DIRECT_SINGLE = (Blocks(64, 64, 32, warps=4, stages=2),)
# A warp alone with one bin needs no barrier, and many at once hide the latency of memory.
INTERPOLATED = (Blocks(1, 512, None, warps=1, stages=1),)


@functools.cache
def _kernels() -> ModuleType | None:
    """The module of the kernels; None where Triton cannot be imported."""
    try:
        return importlib.import_module("clab_d2.layers.most_similar.triton_kernels")
    # A Triton that does not fit the rest of the installation raises more than ImportError.
    except Exception as error:
        logger.debug("Searching without Triton (%s: %s)", type(error).__name__, error)
        return None


def is_available(device: torch.device | str) -> bool:
    """Whether :func:`search` has what it needs on ``device``.

    On a GPU (from Ampere on: for older ones Triton leaves the tensor cores idle), a Triton that can
    be imported; on a CPU, its interpreter (TRITON_INTERPRET=1), which is slow and meant for tests.
    Nothing is compiled here, so a search may still fail.
    """
    device = torch.device(device)
    if device.type == "cuda":
        usable = torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        usable = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    # The import comes last, so that nobody on a CPU waits for it.
    return usable and _kernels() is not None


def try_search(
    bins: Tensor,
    key_rows: Tensor,
    interpolation: BinInterpolation,
    references: Sequence[Tensor],
    k: int,
) -> list[MostSimilar] | None:
    """:func:`search`, or None where it cannot run: the caller then searches another way.

    A kernel that fails (an old GPU, no C compiler for Triton's launcher) is reported once, and not
    tried again for that device and data type.
    """
    where = (references[0].device, references[0].dtype)
    if where[1] not in DTYPES or k > MAX_K or where in _failed or not is_available(where[0]):
        return None
    _check(bins, key_rows, interpolation, references, k)
    try:
        return search(bins, key_rows, interpolation, references, k)
    except torch.cuda.OutOfMemoryError:
        raise
    # Compilers, assemblers, drivers and file systems fail in ways that share no base class.
    except Exception as error:
        _failed.add(where)
        reason = (str(error).strip() or "no message").splitlines()[0]
        logger.warning(
            "The Triton kernel for most similar positions failed on %s (%s: %s); searching "
            "without it, which is slower and gives the same result",
            where[0],
            type(error).__name__,
            reason,
        )
        return None


def search(
    bins: Tensor,
    key_rows: Tensor,
    interpolation: BinInterpolation,
    references: Sequence[Tensor],
    k: int,
) -> list[MostSimilar]:
    """See :func:`clab_d2.layers.most_similar.find_most_similar`; :func:`search_padded` says what
    it takes and raises. The results are views of one tensor."""
    return per_reference(search_padded(bins, key_rows, interpolation, references, k), references)


@torch.no_grad()
def search_padded(
    bins: Tensor,
    key_rows: Tensor,
    interpolation: BinInterpolation,
    references: Sequence[Tensor],
    k: int,
    *,
    route: Route | None = None,
    blocks: Blocks | None = None,
) -> MostSimilar:
    """The K positions most similar to every bin, in every reference map.

    Args:
        bins: (N, C) features of the RoI bins, equal to ``interpolation.of(key_rows)``.
        key_rows: (h * w, C) the key frame's feature map, position by position.
        interpolation: the bins as weighted sums of these rows.
        references: T maps (P_t, C), position by position; float32, bfloat16 or float16, which the
            products' factors then have, too. Sums are float32.
        k: how many positions to take, 1 to 8.
        route: default by data type: "direct" in half precision, else "interpolated".
        blocks: how the kernel cuts its work, for measurements and tests; default by route.

    Returns:
        positions: (N, T, K) int64, within each map; of equally similar ones the lower.
        cosines: (N, T, K) float32, best first. Where a map has fewer than K positions, the rest
        are 0 with cosine -inf, hence of no weight in a softmax.

    Raises:
        ValueError: the arguments do not fit together.
        Exception: whatever Triton raises where it cannot compile or launch.
    """
    _check(bins, key_rows, interpolation, references, k)
    lengths = tuple(len(reference) for reference in references)
    table = torch.cat(list(references))
    num_bins, num_references = len(bins), len(lengths)
    shape = (num_bins, num_references, k)
    found = MostSimilar(
        torch.empty(shape, dtype=torch.int64, device=table.device),
        torch.empty(shape, dtype=torch.float32, device=table.device),
    )
    if num_bins == 0:
        return found
    single = table.dtype == torch.float32
    if route is None:
        route = "interpolated" if single else "direct"
    if blocks is not None:
        candidates: tuple[Blocks, ...] = (blocks,)
    elif route == "interpolated":
        candidates = INTERPOLATED
    else:
        candidates = DIRECT_SINGLE if single else DIRECT_HALF
    kernels = _kernels()
    if kernels is None:
        raise RuntimeError("Triton cannot be imported")
    bins, key_rows = bins.to(table.dtype).contiguous(), key_rows.to(table.dtype)
    # Two slots at least: with one, Triton 3.0 simplifies the kernel into what it crashes on.
    constants = {"K": k, "SLOTS": max(2, 1 << (k - 1).bit_length())}
    # Triton launches on the current device.
    with torch.cuda.device_of(table):
        bin_norms = torch.linalg.vector_norm(bins, dim=1, dtype=torch.float32)
        table_norms = torch.linalg.vector_norm(table, dim=1, dtype=torch.float32)
        inverse_norms = 1.0 / (table_norms + NORM_EPS)
        offsets = _offsets(lengths, table.device)
        common = (inverse_norms, bin_norms, offsets, *found, num_bins, num_references)
        if route == "direct":
            constants |= {"CHANNELS": table.shape[1]}
            arguments = (bins, table, *common)
            _launch(
                kernels.direct_kernel, num_bins, num_references, arguments, constants, candidates
            )
            return found
        if not single:
            # Their products with the key map could be beyond the range of half precision.
            table = (table * inverse_norms[:, None]).to(table.dtype)
            common = (torch.ones_like(inverse_norms), *common[1:])
        samples = (interpolation.positions.contiguous(), interpolation.weights.contiguous())
        constants |= {"NUM_SAMPLES": samples[0].shape[1]}
        bounds = (0, *itertools.accumulate(lengths))
        for first, last in _groups(lengths, len(key_rows) * key_rows.element_size()):
            correlation = key_rows @ table[bounds[first] : bounds[last]].T
            arguments = (correlation, *samples, *common, first, correlation.shape[1])
            _launch(
                kernels.interpolated_kernel,
                num_bins,
                last - first,
                arguments,
                constants,
                candidates,
            )
    return found


def per_reference(found: MostSimilar, references: Sequence[Tensor]) -> list[MostSimilar]:
    """What :func:`search_padded` found in each map, (N, min(K, P_t)); views."""
    return [
        MostSimilar(positions[:, : len(reference)], cosines[:, : len(reference)])
        for positions, cosines, reference in zip(
            found.positions.unbind(1), found.cosines.unbind(1), references, strict=True
        )
    ]


def _check(
    bins: Tensor,
    key_rows: Tensor,
    interpolation: BinInterpolation,
    references: Sequence[Tensor],
    k: int,
) -> None:
    """Arguments that do not fit together would let a kernel read beyond them."""
    if not 1 <= k <= MAX_K:
        raise ValueError(f"the Triton search takes 1 to {MAX_K} positions, not {k}")
    dtypes = {reference.dtype for reference in references}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        raise ValueError(f"the Triton search has no kernel for maps of {dtypes or 'no type'}")
    if min(map(len, references)) == 0:
        raise ValueError("a reference map without positions has no most similar one")
    channels = {tensor.shape[1] for tensor in (bins, key_rows, *references)}
    if len(channels) != 1:
        raise ValueError(f"bins, key map and references differ in channels: {sorted(channels)}")
    if not len(bins) == len(interpolation.positions) == len(interpolation.weights):
        raise ValueError(
            f"{len(bins)} bins do not fit an interpolation of {len(interpolation.positions)}"
        )


@functools.lru_cache(maxsize=64)
def _offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each map begins in the table, and where the last one ends: (T + 1,) int32.

    Kept between key frames, because copying it to a GPU waits for all the work queued there.
    """
    return torch.tensor((0, *lengths)).cumsum(0).to(device=device, dtype=torch.int32)


def _groups(lengths: Sequence[int], bytes_per_position: int) -> Iterator[tuple[int, int]]:
    """Ranges of maps whose correlations fit into :data:`CORRELATION_BYTES` together."""
    first, size = 0, 0
    for index, length in enumerate(lengths):
        if index > first and (size + length) * bytes_per_position > CORRELATION_BYTES:
            yield first, index
            first, size = index, 0
        size += length
    yield first, len(lengths)


def _launch(
    kernel: Any,
    num_bins: int,
    num_references: int,
    arguments: Sequence[Any],
    constants: dict[str, Any],
    candidates: Sequence[Blocks],
) -> None:
    """Run a kernel with the first of ``candidates`` that the GPU has the resources for."""
    import triton

    for blocks in candidates:
        sizes = {"BLOCK_N": blocks.bins, "BLOCK_P": blocks.positions}
        if blocks.channels is not None:
            sizes["BLOCK_C"] = blocks.channels
        options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
        if blocks.registers is not None and torch.version.hip is None:
            options["maxnreg"] = blocks.registers
        grid = (triton.cdiv(num_bins, blocks.bins), num_references)
        try:
            kernel[grid](*arguments, **constants, **sizes, **options)
        except triton.OutOfResources:
            if blocks is candidates[-1]:
                raise
        else:
            return
