"""ONNX files looked into without the package onnx: whether one would have other files read.

A tensor of an ONNX file may say that its values lie in another file, by a path of the file's
choosing. Exports never do so, and a file from a stranger must not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from clab_d2.errors import DataError

# Numbers of fields in onnx.proto whose messages can lead to a tensor: message -> field -> message.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}  # fmt: skip
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_MAX_DEPTH = 64


def refuse_external_data(model: bytes, path: str | os.PathLike[str]) -> None:
    """Refuse an ONNX model with values in other files.

    Args:
        model: the file's content.
        path: its name, for messages.

    Raises:
        DataError: it has some, or is no ONNX model.
    """
    try:
        external = _has_external_data(memoryview(model), "Model", 0)
    except (IndexError, ValueError) as error:
        raise DataError(f"{path}: no ONNX model ({error}); export the model anew") from None
    if external:
        raise DataError(
            f"{path}: has values in other files, which exported models never have; get it again "
            "from a source that you trust"
        )


def _has_external_data(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    for number, value in _fields(message):
        if kind == "Tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value):
                return True
        elif number in _MESSAGES[kind] and isinstance(value, memoryview):
            inner = _MESSAGES[kind][number]
            if _has_external_data(value, inner, depth + 1):
                return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Numbers and values of a message of Protocol Buffers, by its wire format."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(message):
            raise ValueError("it is cut off")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where what follows it begins."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
