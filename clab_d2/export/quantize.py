"""The backbone of an exported model in 8-bit integers, by NNCF."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clab_d2.errors import DataError
from clab_d2.io import atomic_write
from clab_d2.optional import import_optional
from clab_d2.runtime.description import FRAME_GRAPH, Description

logger = logging.getLogger(__name__)

#: Frames that calibrate where there are more.
MAX_FRAMES = 100
# How PyTorch's exporter notes which module a node comes from: ["", "backbone", "backbone.neck"].
_SCOPES = "pkg.torch.onnx.name_scopes"


def quantize_backbone(
    folder: str | os.PathLike[str], description: Description, frames: Iterable[np.ndarray]
) -> Description:
    """Write ``frame.onnx`` anew, with the convolutions of its backbone in 8-bit integers.

    Proposals, RoI features and all that follows stay in single precision, and so do two kinds of
    convolutions that are few multiply-adds and lose most: the first, and depthwise ones, whose
    channels each have a range of their own, where integers share one over the whole map.

    Args:
        folder: an exported model.
        description: what it says.
        frames: typical ones, RGB, uint8 (H, W, 3), whose activations say what range integers are
            to cover; the first :data:`MAX_FRAMES` are taken.

    Returns:
        What the folder says now.

    Raises:
        ConfigError: NNCF is not installed.
        DataError: there is no frame.
    """
    nncf = import_optional("nncf", "export", "int8")
    onnx = import_optional("onnx", "export", "int8")
    path = Path(folder) / FRAME_GRAPH
    inputs = [_input(description, frame) for frame in itertools.islice(frames, MAX_FRAMES)]
    if not inputs:
        raise DataError("there is no frame to calibrate int8 with; name another video")
    graph = onnx.load_from_string(path.read_bytes())
    convs = _quantized_convs(graph.graph)
    outside = [
        node.name for node in graph.graph.node
        if not _is_of_backbone(node) or (node.op_type == "Conv" and node.name not in convs)
    ]  # fmt: skip
    logger.info("calibrating the backbone's int8 with %d frames", len(inputs))
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,  # activations after other things than ReLU, too
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
    )
    with atomic_write(path, "wb") as file:
        file.write(quantized.SerializeToString())
    description = dataclasses.replace(description, precision="int8")
    description.save(folder)
    return description


def _input(description: Description, frame: np.ndarray) -> dict[str, np.ndarray]:
    """What the frame's graph takes of a frame."""
    image = description.preprocessing.resize(frame)
    return {
        "image": description.preprocessing.normalise(image),
        "image_size": np.array(image.shape[:2], np.float32),
    }


def _quantized_convs(graph: Any) -> set[str]:
    """Names of the backbone's convolutions that become ones of integers."""
    convs = [node for node in graph.node if node.op_type == "Conv" and _is_of_backbone(node)]
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    return {node.name for node in convs[1:] if not _is_depthwise(node, shapes)}


def _is_depthwise(conv: Any, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether each of several channels has a filter of its own, by the weights' (O, I / groups, h,
    w)."""
    groups = next((entry.i for entry in conv.attribute if entry.name == "group"), 1)
    return groups > 1 and shapes[conv.input[1]][1] == 1


def _is_of_backbone(node: Any) -> bool:
    scopes: Sequence[str] = next(
        (ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == _SCOPES), ()
    )
    return "backbone" in scopes
