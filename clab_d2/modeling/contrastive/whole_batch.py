"""Losses over the embeddings of all processes, equal to one process with all of them."""

from __future__ import annotations

import hashlib

import torch
from detectron2.utils import comm
from torch import Tensor
from torch import distributed as dist


def gather_rows(rows: Tensor) -> Tensor:
    """Join the rows of all processes, in the order of their ranks; only own ones have gradients.

    Args:
        rows: (N_r, ...); processes may have different numbers of rows.

    Returns:
        (sum of N_r, ...).
    """
    if comm.get_world_size() == 1:
        return rows
    lengths = gather_numbers(len(rows), rows.device)
    if max(lengths) == 0:
        return rows
    padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    joined = [
        part[:length] for part, length in zip(_all_gather(padded), lengths, strict=True)
    ]
    joined[comm.get_rank()] = rows
    return torch.cat(joined)


def gather_numbers(number: int, device: torch.device) -> list[int]:
    """A whole number of each process, in the order of their ranks.

    Args:
        number: this process's.
        device: where the processes' tensors are.
    """
    if comm.get_world_size() == 1:
        return [number]
    return [int(other) for other in _all_gather(torch.tensor([number], device=device))]


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(comm.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def as_whole_batch_loss(loss: Tensor) -> Tensor:
    """Scale the gradient of a loss that each process computes over :func:`gather_rows`.

    Each process differentiates the whole loss by its own rows alone, and DistributedDataParallel
    averages over the W processes where the whole gradient is the sum: so the gradient is scaled by
    W, while the value stays.
    """
    world_size = comm.get_world_size()
    if world_size == 1:
        return loss
    return loss * world_size - loss.detach() * (world_size - 1)


def stable_label(*parts: object) -> int:
    """A label of 63 bits that is the same in every process and run, for the same parts."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
