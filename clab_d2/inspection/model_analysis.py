"""Parameters, multiply-adds and activations of a detector by part, training and inference apart.

What PyTorch computes is traced and counted by fvcore, operator by operator, on frames of noise with
random weights: what a detector costs hardly depends on what it sees. Compiled loops are left out
meanwhile, so that each product is an operator of PyTorch's.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import jit_handles
from fvcore.nn.jit_analysis import JitModelAnalysis
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.layers.numba_support import without_loops
from clab_d2.modeling.reference_memory import References
from clab_d2.modeling.temporal_rcnn import TemporalRCNN

_BRANCH = "contrastive_branch"
_REST = "the rest"


@dataclass(frozen=True)
class PartCost:
    """What one part of a detector costs.

    Attributes:
        name: path of the module, or "the rest".
        parameters: numbers that it learns, frozen ones included.
        multiply_adds: in the forward pass.
        activations: numbers that convolutions and matrix products put out in it.
    """

    name: str
    parameters: int
    multiply_adds: int
    activations: int


@dataclass(frozen=True)
class PassCost:
    """What a forward pass costs, by part.

    Attributes:
        what: the pass, in words.
        parts: in order; together they are the whole pass.
        uncounted: operators that fvcore has no count for, and how many there were: elementwise
            ones, sorting and such.
    """

    what: str
    parts: list[PartCost]
    uncounted: dict[str, int]

    def part(self, name: str) -> PartCost:
        """A part by its name; zeros for one that is not there."""
        return next((part for part in self.parts if part.name == name), PartCost(name, 0, 0, 0))

    @property
    def total(self) -> PartCost:
        return PartCost(
            "total",
            sum(part.parameters for part in self.parts),
            sum(part.multiply_adds for part in self.parts),
            sum(part.activations for part in self.parts),
        )


@dataclass(frozen=True)
class ModelAnalysis:
    """A detector's cost.

    Attributes:
        training: the forward pass of one clip; None if the config can't be trained so.
        inference: one key frame whose other references are in memory already.
        inference_without_branch: the same detector after its contrastive branch has been taken
            out; None where it has none.
    """

    training: PassCost
    inference: PassCost
    inference_without_branch: PassCost | None


def analyze_model(
    cfg: CfgNode, size: tuple[int, int] = (600, 1000), num_references: int | None = None
) -> ModelAnalysis:
    """Count what a config's detector costs.

    Args:
        cfg: the config; its weights are not loaded.
        size: (height, width) of the frames as they go through the model.
        num_references: at test, the key frame not counted; default ``TEST.REFERENCES.NUM``.
            In training it is ``INPUT.REFERENCES.NUM``.

    Raises:
        ConfigError: it is no two-stage detector of this package.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg)
    if not isinstance(model, TemporalRCNN):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} can't be analysed; it takes "
            "TemporalRCNN"
        )
    # What random weights make of noise may be no numbers; the next parts get noise again. The
    # model is this function's own, so the hook needs no taking off.
    model.backbone.register_forward_hook(_noise_in_place_of_maps)
    if num_references is None:
        num_references = cfg.TEST.REFERENCES.NUM
    training = _training(model, size, cfg.INPUT.REFERENCES.NUM)
    inference = _inference(model, size, num_references)
    without = None
    if model.contrastive_branch is not None:
        model.contrastive_branch = None
        without = _inference(model, size, num_references)
    return ModelAnalysis(training, inference, without)


class _Pass(nn.Module):
    """A pass of a detector as fvcore takes it: tensors in, tensors out, the detector a child."""

    def __init__(self, model: nn.Module, run: Callable[[Sequence[Tensor]], Sequence[Tensor]]):
        super().__init__()
        self.model = model
        self._run = run

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._run(images))


def _training(model: TemporalRCNN, size: tuple[int, int], num_references: int) -> PassCost:
    """One clip; of the objects in each frame the first overlap, so that RoIs are found."""
    model.train()
    count = 1 + (num_references if model.needs_references else 0)
    height, width = size

    def truth() -> Instances:
        boxes = torch.tensor([[0.2, 0.2, 0.6, 0.7], [0.5, 0.4, 0.9, 0.8]])
        return Instances(
            size,
            gt_boxes=Boxes(boxes * torch.tensor([width, height] * 2)),
            gt_classes=torch.zeros(2, dtype=torch.long),
            gt_instance_ids=torch.arange(2),
        )

    def run(images: Sequence[Tensor]) -> Sequence[Tensor]:
        clip = {
            "dataset_name": "noise",
            "video_id": 1,
            "frame_id": 0,
            "images": dict(enumerate(images)),
            "reference_frame_ids": list(range(1, len(images))),
            "instances": {frame: truth() for frame in range(len(images))},
        }
        with EventStorage(0):
            losses = model.losses([clip])
        return list(losses.values())

    references = count - 1
    what = f"training: forward pass of a clip, key frame and {references} references"
    return _count(model, run, [_noise(size, number) for number in range(count)], what)


@torch.no_grad()
def _inference(model: TemporalRCNN, size: tuple[int, int], num_references: int) -> PassCost:
    model.eval()
    in_memory = []
    if model.needs_references:
        in_memory = model.extract([_noise(size, 1)]) * num_references
    found: list[int] = []

    def run(images: Sequence[Tensor]) -> Sequence[Tensor]:
        (frame,) = model.extract(list(images))
        frames = [*in_memory, frame] if model.needs_references else []
        references = References(frames, [1] * len(frames))
        key = model.aggregate_maps(frame, references)
        instances = model.detect(key, references)
        found.append(len(key.proposals))
        return [instances.scores, instances.pred_boxes.tensor]

    images = [_noise(size, 0)]
    run(images)  # tells how many RoIs there are
    what = f"inference: a key frame of {found[0]} RoIs"
    if model.needs_references:
        what += f", its {num_references} references in memory"
    return _count(model, run, images, what)


def _noise(size: tuple[int, int], number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)


def _count(
    model: TemporalRCNN,
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    images: Sequence[Tensor],
    what: str,
) -> PassCost:
    analysis = JitModelAnalysis(_Pass(model, run), tuple(images))
    analysis.set_op_handle(**{name: _both(count) for name, count in _MULTIPLY_ADDS.items()})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    with without_loops():
        counts = analysis.by_module_and_operator()
    uncounted = dict(analysis.unsupported_ops())
    parts, named = [], _parts(model)
    for name, module in named.items():
        inner = [other for other in named if other.startswith(f"{name}.")]
        own, *of_inner = (Counter(counts[f"model.{path}"]) for path in (name, *inner))
        parameters = _num_parameters(module) - sum(_num_parameters(named[n]) for n in inner)
        for count in of_inner:
            own.subtract(count)
        parts.append(PartCost(name, parameters, own["multiply_adds"], own["activations"]))
    rest = PartCost(
        _REST,
        _num_parameters(model) - sum(part.parameters for part in parts),
        counts[""]["multiply_adds"] - sum(part.multiply_adds for part in parts),
        counts[""]["activations"] - sum(part.activations for part in parts),
    )
    if any((rest.parameters, rest.multiply_adds, rest.activations)):
        parts.append(rest)
    return PassCost(what, parts, uncounted)


def _parts(model: TemporalRCNN) -> dict[str, nn.Module]:
    """What is counted by itself: the detector's parts, those of its second stage, and the
    aggregations after FC layers."""
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if name != "roi_heads":
            parts[name] = child
            continue
        for inner, part in child.named_children():
            parts[f"{name}.{inner}"] = part
            if inner == "box_head":
                parts |= {
                    f"{name}.{inner}.{path}": module
                    for path, module in part.named_modules()
                    if path.split(".")[-1] in ("aggregations", "aggregation")
                }
    return parts


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes() or [])


def _embedding_bag(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Weighted sums of rows: as many products as rows are taken, times their length."""
    return math.prod(_shape(inputs[1])) * _shape(inputs[0])[1]


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Queries by keys, and weights by values."""
    query, key, value = (_shape(one) for one in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (key[-1] + value[-1])


def _baddbmm(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return math.prod(_shape(inputs[1])) * _shape(inputs[2])[-1]


# Of each operator that multiplies and adds, how often it does: of its inputs and outputs.
_MULTIPLY_ADDS: dict[str, Callable[[Any, Any], Any]] = {
    "aten::_convolution": jit_handles.conv_flop_jit,
    "aten::linear": jit_handles.linear_flop_jit,
    "aten::addmm": jit_handles.addmm_flop_jit,
    "aten::mm": jit_handles.matmul_flop_jit,
    "aten::matmul": jit_handles.matmul_flop_jit,
    "aten::bmm": jit_handles.bmm_flop_jit,
    "aten::einsum": jit_handles.einsum_flop_jit,
    "aten::baddbmm": _baddbmm,
    "aten::embedding_bag": _embedding_bag,
    "aten::scaled_dot_product_attention": _attention,
}


def _both(multiply_adds: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Counter]:
    """An operator's multiply-adds and activations from one trace."""
    activations = jit_handles.generic_activation_jit()

    def count(inputs: Any, outputs: Any) -> Counter[str]:
        found = multiply_adds(inputs, outputs)
        number = sum(found.values()) if isinstance(found, Counter) else found
        return Counter(multiply_adds=number, activations=activations(inputs, outputs))

    return count


def _noise_in_place_of_maps(
    module: nn.Module, images: tuple[Tensor, ...], maps: dict[str, Tensor]
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(like.shape, generator=generator).to(like) for name, like in maps.items()
    }


logging.getLogger("fvcore").setLevel(logging.ERROR)
