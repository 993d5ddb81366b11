"""A detector as a folder of two ONNX graphs and a description."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from clab_d2.data.reference_frames import ReferenceFrames
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import atomic_write
from clab_d2.modeling.export.base import ExportGraphs
from clab_d2.modeling.temporal_detector import TemporalDetector
from clab_d2.optional import import_optional
from clab_d2.runtime.description import (
    DESCRIPTION,
    FRAME_GRAPH,
    KEY_FRAME_GRAPH,
    Description,
)
from clab_d2.runtime.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

_SAMPLINGS = ("adaptive", "fixed", "causal")
# References of the example that the key frame's graph is traced with; any number may come later.
_EXAMPLE_REFERENCES = 3


def export_onnx(
    model: nn.Module,
    cfg: CfgNode,
    class_names: Sequence[str],
    folder: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
) -> Description:
    """Write a detector for onnxruntime and OpenVINO.

    Args:
        model: in evaluation mode, ready for inference.
        cfg: its config.
        class_names: by class number.
        folder: gets ``frame.onnx``, ``key_frame.onnx`` and ``model.json``; made if missing.
        size: (height, width) of the padded image, the only one that the graphs take; None for any.

    Returns:
        What ``model.json`` says.

    Raises:
        ConfigError: the detector, or the config, has something that can't be exported.
        DataError: the folder can't be written to.
    """
    for package in ("onnx", "onnxscript"):
        import_optional(package, "export", "exporting to ONNX")
    if not isinstance(model, TemporalDetector):
        raise ConfigError(
            f"{type(model).__name__} can't be exported; set TEST.AUG.ENABLED False, or derive the "
            "detector from TemporalDetector"
        )
    graphs = model.export_graphs()
    description = describe(model, cfg, class_names, graphs, size)
    height, width = size or _example_size(description.preprocessing)
    frame, names = graphs.frame.eval(), list(graphs.frame.output_names)
    outputs = _run_frame(frame, height, width)
    dims: Mapping[str, Sequence[torch.export.Dim | None]] = {}
    if size is None:
        more = 4 * max(description.preprocessing.divisibility, 8)
        dims = _dynamic_dims(names, outputs, _run_frame(frame, height + more, width + 2 * more))
    step = description.preprocessing.divisibility if size is None else None
    frame_graph = _frame_graph(frame, names, height, width, step)
    key_graph = _key_frame_graph(graphs, dict(zip(names, outputs, strict=True)), dims)
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Last and first: no folder has a description of other graphs.
        (folder / DESCRIPTION).unlink(missing_ok=True)
        for name, content in ((FRAME_GRAPH, frame_graph), (KEY_FRAME_GRAPH, key_graph)):
            with atomic_write(folder / name, "wb") as file:
                file.write(content)
        description.save(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written to ({error.strerror}); name another folder"
        ) from None
    return description


def describe(
    model: TemporalDetector,
    cfg: CfgNode,
    class_names: Sequence[str],
    graphs: ExportGraphs,
    size: tuple[int, int] | None = None,
) -> Description:
    """What goes with a detector's graphs; see :func:`export_onnx`."""
    return Description(
        class_names=tuple(class_names),
        preprocessing=_preprocessing(model, cfg, size),
        sampling=_sampling(cfg) if graphs.references else None,
        own=tuple(graphs.own),
        references=dict(graphs.references),
        score_threshold=graphs.score_threshold,
        nms_threshold=graphs.nms_threshold,
        max_detections=graphs.max_detections,
        finds_shots=bool(cfg.TEST.REFERENCES.FIND_SHOTS and graphs.references),
    )


def _preprocessing(
    model: TemporalDetector, cfg: CfgNode, size: tuple[int, int] | None
) -> Preprocessing:
    backbone = model.backbone
    if any(backbone.padding_constraints.get(key) for key in ("square_size",)):
        raise ConfigError(
            f"MODEL.BACKBONE.NAME {type(backbone).__name__} pads images to squares, which can't be "
            "exported"
        )
    step = max(backbone.size_divisibility, 1)
    if size is not None and any(side < 1 or side % step for side in size):
        raise ConfigError(
            f"--size {size[0]} {size[1]}: images of this model are padded to multiples of {step}; "
            "give the padded size"
        )
    return Preprocessing(
        channels=cfg.INPUT.FORMAT,
        backend=cfg.INPUT.RESIZE_BACKEND,
        short_edge=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        pixel_mean=tuple(model.pixel_mean.flatten().tolist()),
        pixel_std=tuple(model.pixel_std.flatten().tolist()),
        divisibility=backbone.size_divisibility,
        size=size,
    )


def _sampling(cfg: CfgNode) -> ReferenceFrames:
    references = cfg.TEST.REFERENCES
    if references.SAMPLING not in _SAMPLINGS:
        raise ConfigError(
            f"TEST.REFERENCES.SAMPLING {references.SAMPLING!r} can't be exported; set one of "
            f"{', '.join(_SAMPLINGS)}"
        )
    if cfg.TEST.POSTPROCESS.NAME:
        raise ConfigError(
            f"TEST.POSTPROCESS.NAME {cfg.TEST.POSTPROCESS.NAME!r} can't be exported; set it '' "
            "(tools/evaluate.py --postprocess does the same to written detections)"
        )
    return ReferenceFrames(references.SAMPLING, references.NUM, references.STRIDE)


def _example_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """A size to trace with where any may come: that of a frame of 16:9."""
    step = max(preprocessing.divisibility, 1)
    short = preprocessing.short_edge or 256
    long = min(short * 16 / 9, max(preprocessing.max_size, short))
    height, width = (-(-round(side) // step) * step for side in (short, long))
    return height, width


@torch.no_grad()
def _run_frame(frame: nn.Module, height: int, width: int) -> list[Tensor]:
    return list(frame(*_example_image(frame, height, width)))


def _example_image(frame: nn.Module, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    device = next(frame.parameters()).device
    image = torch.randn(1, 3, height, width, generator=generator).to(device)
    return image, torch.tensor([height, width], dtype=torch.float32, device=device)


def _dynamic_dims(
    names: Sequence[str], ones: Sequence[Tensor], others: Sequence[Tensor]
) -> dict[str, list[torch.export.Dim | None]]:
    """Which dimensions of a frame's outputs follow its size, by what they are at two sizes; those
    that are alike at both are the same dimension.

    Args:
        names: of the outputs.
        ones, others: outputs for images of two sizes.
    """
    known: dict[tuple[int, int], torch.export.Dim] = {}
    dims: dict[str, list[torch.export.Dim | None]] = {}
    for name, one, other in zip(names, ones, others, strict=True):
        dims[name] = []
        for lengths in zip(one.shape, other.shape, strict=True):
            if lengths[0] == lengths[1]:
                dims[name].append(None)
                continue
            if lengths not in known:
                known[lengths] = torch.export.Dim(f"length_{len(known)}", min=2, max=2**24)
            dims[name].append(known[lengths])
    return dims


def _frame_graph(
    frame: nn.Module, names: Sequence[str], height: int, width: int, step: int | None
) -> bytes:
    """The frame's graph, for images whose sides are multiples of ``step``; None: of one size."""
    dims = None
    if step is not None:
        steps = [torch.export.Dim(name, min=1, max=2**14) for name in ("rows", "columns")]
        # Said of the dimensions, as a pyramid adds maps whose sizes agree only then.
        dims = {2 + i: max(step, 1) * one for i, one in enumerate(steps)}
    return _to_onnx(
        "frame's",
        frame,
        _example_image(frame, height, width),
        (dims, None),
        ["image", "image_size"],
        names,
    )


def _key_frame_graph(
    graphs: ExportGraphs,
    outputs: Mapping[str, Tensor],
    dims: Mapping[str, Sequence[torch.export.Dim | None]],
) -> bytes:
    num_frames = torch.export.Dim("references", min=1, max=2**16)
    joined, joined_dims = [], []
    for name, axis in graphs.references.items():
        joined.append(torch.stack([outputs[name]] * _EXAMPLE_REFERENCES, dim=axis))
        of_frame = list(dims.get(name, [None] * outputs[name].dim()))
        joined_dims.append(_by_number([*of_frame[:axis], num_frames, *of_frame[axis:]]))
    own = [outputs[name] for name in graphs.own]
    # An input that is not used stays one: of a single-frame detector it has one number.
    counts = torch.ones(_EXAMPLE_REFERENCES if joined else 1, device=own[0].device)
    return _to_onnx(
        "key frame's",
        graphs.key_frame.eval(),
        (own, counts, joined),
        (
            [_by_number(dims.get(name, ())) for name in graphs.own],
            {0: num_frames} if joined else None,
            joined_dims,
        ),
        [*graphs.own, "counts", *(f"reference_{name}" for name in graphs.references)],
        ["boxes_of_classes", "scores"],
    )


def _by_number(dims: Sequence[Any]) -> dict[int, Any]:
    return {number: dim for number, dim in enumerate(dims) if dim is not None}


def _to_onnx(
    which: str,
    graph: nn.Module,
    example: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> bytes:
    logger.info("tracing the %s graph", which)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                input_names=list(inputs),
                output_names=list(outputs),
                external_data=False,
                verbose=False,
            )
        return program.model_proto.SerializeToString()
    except Exception as error:  # whatever a part does that has no form in ONNX
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the {which} graph can't be exported ({type(error).__name__}: {reason})"
        ) from error
