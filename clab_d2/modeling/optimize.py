"""What makes a trained detector faster without changing what it detects (beyond rounding)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from clab_d2.modeling.backbones.base import bottom_up_of

logger = logging.getLogger(__name__)

_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d)

# TEST.PRECISION -> what autocast computes in; "auto" is one of the first two, by the device
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": None}


def precision_on(precision: str, device: torch.device) -> str:
    """What ``TEST.PRECISION`` comes to on a device: "auto" is bf16 where :func:`has_bf16_units`."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16_units(device) else "fp32"


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device multiplies bf16 matrices faster than single precision ones.

    GPUs of Nvidia do from Ampere on. Of a CPU PyTorch tells its instructions (AVX-512 BF16, AMX,
    Arm's BF16); old versions don't, and there, as on other devices, none are counted on.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return any(has is True and "bf16" in name for name, has in capabilities().items())


def autocast_to(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast for ``TEST.PRECISION``; for "fp32" whatever holds already."""
    dtype = PRECISIONS[precision_on(precision, device)]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def prepare_for_inference(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Make a detector faster that will not be trained any more, in place.

    With ``TEST.OPTIMIZE`` batch norms become part of the convs before them, and the first stage
    goes channels-last, which is how the aggregation reads feature maps. With ``TEST.COMPILE`` the
    backbone goes through ``torch.compile``: its first frames take a minute or more.

    Args:
        model: a detector with its weights loaded.
        cfg: its config.

    Returns:
        ``model``, in evaluation mode; its ``state_dict`` is another than before.
    """
    model.eval()
    if cfg.TEST.OPTIMIZE:
        logger.info("batch norms folded into %d convs for inference", fold_batch_norms(model))
        to_channels_last(model)
    if cfg.TEST.COMPILE and hasattr(model, "backbone"):
        # In place, so that hooks and attributes of the module stay.
        model.backbone.compile()
    return model


def to_channels_last(model: nn.Module) -> None:
    """Lay out the first stage's convs, and with them its maps, channels-last, in place.

    The values stay; they are summed in another order.
    """
    for name in ("backbone", "proposal_generator", "dense_head"):
        if hasattr(model, name):  # a model of the user's own may be made otherwise
            getattr(model, name).to(memory_format=torch.channels_last)


def fold_batch_norms(model: nn.Module) -> int:
    """Make batch norms that follow a conv part of that conv, in place.

    These are the ``norm`` of Detectron2's convs, and, within the network below the neck, each batch
    norm that is seen to take nothing but what a conv gives to nothing else.

    Args:
        model: a detector, or any other module; in evaluation mode.

    Returns:
        How many there were.
    """
    folded = _fold_norms_of_convs(model)
    if hasattr(model, "backbone"):
        network = bottom_up_of(model.backbone)
        if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            folded += _fold_neighbours(network)
    return folded


@torch.no_grad()
def _fold_norms_of_convs(model: nn.Module) -> int:
    folded = 0
    for conv in model.modules():
        norm = getattr(conv, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, _NORMS):
            _fold(conv, norm)
            conv.norm = None
            folded += 1
    return folded


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias,
    )  # fmt: skip


@dataclass
class _Call:
    """One call of a conv or a batch norm while an image went through a network."""

    module: nn.Module
    # Copies, as a later step may change the tensors in place.
    values_in: Tensor
    values_out: Tensor
    # The steps of autograd's graph that made them.
    took: Any
    step: Any


def _fold_neighbours(network: nn.Module) -> int:
    """Fold batch norms that stand beside their convs, whatever the architecture.

    An image goes through the network, and autograd's graph of it tells who took what from whom.
    """
    calls, maps = _watch(network)
    consumers = _consumers(maps)
    times = Counter(call.module for call in calls)
    convs = {
        call.step: call
        for call in calls
        if isinstance(call.module, nn.Conv2d) and times[call.module] == 1
    }
    places = {
        child: (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
    }
    folded = 0
    for call in calls:
        source = convs.get(call.took)
        if not isinstance(call.module, _NORMS) or times[call.module] != 1 or source is None:
            continue
        if consumers[source.step] != 1:
            continue
        if _fold_pair(source, call):
            parent, name = places[call.module]
            setattr(parent, name, _what_remains(call.module))
            folded += 1
    return folded


def _watch(network: nn.Module) -> tuple[list[_Call], list[Tensor]]:
    """Calls of a network's convs and batch norms for one image, and the maps that came out."""
    calls: list[_Call] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        values_in, values_out = x.detach().clone(), output.detach().clone()
        made_by = x.grad_fn, output.grad_fn
        calls.append(_Call(module, values_in, values_out, *made_by))

    watched = [m for m in network.modules() if isinstance(m, (nn.Conv2d, *_NORMS))]
    handles = [module.register_forward_hook(note) for module in watched]
    parameter = next(network.parameters())
    divisibility = max(network.size_divisibility, 1)
    size = -(-64 // divisibility) * divisibility
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, size, size, generator=generator)
    try:
        with torch.enable_grad():
            # Its gradient is what makes a graph even of a network that is frozen altogether.
            maps = network(image.to(parameter.device, parameter.dtype).requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return calls, list(maps.values())


def _consumers(maps: Sequence[Tensor]) -> Counter[Any]:
    """How many steps of autograd's graph, or maps, take each step's output."""
    counts: Counter[Any] = Counter(tensor.grad_fn for tensor in maps)
    left, seen = [tensor.grad_fn for tensor in maps], set()
    while left:
        step = left.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        following = [before for before, _ in step.next_functions]
        counts.update(following)
        left += following
    return counts


@torch.no_grad()
def _fold_pair(conv_call: _Call, norm_call: _Call) -> bool:
    """Fold one batch norm, unless the conv then gives something else than both together did.

    It does so where it is more than a convolution by its weight, such as one that standardises it.
    """
    conv, norm = conv_call.module, norm_call.module
    assert isinstance(conv, nn.Conv2d)
    before = conv.weight, conv.bias
    _fold(conv, norm)
    expected = norm_call.values_out
    actual = _what_remains(norm)(conv(conv_call.values_in))
    scale = expected.abs().max().clamp(min=1e-6)
    if (actual - expected).abs().max() <= 1e-3 * scale:
        return True
    conv.weight, conv.bias = before
    return False


def _what_remains(norm: nn.Module) -> nn.Module:
    """What is left to do of a batch norm that is folded: timm's may end in an activation."""
    return getattr(norm, "act", None) or nn.Identity()
