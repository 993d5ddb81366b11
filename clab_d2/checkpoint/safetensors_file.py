"""Weights as ``.safetensors``: names, tensors and a few texts, with nothing in it that could run.

The format (https://huggingface.co/docs/safetensors) is a length of 8 bytes, a JSON header of that
length, and the tensors' bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from clab_d2.io import atomic_write

SUFFIX = ".safetensors"
_LENGTH_BYTES = 8


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file begins as one of this format does.

    Args:
        head: its first 9 bytes or more.
        size: bytes of the whole file.
    """
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and _LENGTH_BYTES + length <= size


def parse_safetensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata in a file's content.

    Raises:
        Exception: whatever comes out of a damaged file.
    """
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
    return tensors, header.get("__metadata__") or {}


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: the file.
        tensors: name -> tensor, none a view of another's memory.
        metadata: texts to keep beside them.

    Raises:
        OSError: it can't be written.
    """
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        # Other programs look for the framework here.
        {"format": "pt", **metadata},
    )
    with atomic_write(path, "wb") as file:
        file.write(content)
