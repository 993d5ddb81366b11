"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.base import BottomUp, is_trained

# Blocks between two activations that are kept. All stages of a ResNet-50 have at most so many; of
# the 23 blocks of ResNet-101's res4, all at once would need too much when they are computed again.
_BLOCKS_AT_A_TIME = 6

Module = TypeVar("Module", bound=nn.Module)


class CheckpointedStage(nn.Sequential):
    """Blocks whose activations are computed again in the backward pass instead of being kept."""

    @classmethod
    def of(cls, stage: nn.Module) -> CheckpointedStage:
        """In place of a module that runs its children one after the other, with their names."""
        return cls(OrderedDict(stage.named_children())).train(stage.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h', w')"""
        if not torch.is_grad_enabled():
            return super().forward(x)
        blocks = list(self)
        for start in range(0, len(blocks), _BLOCKS_AT_A_TIME):
            x = run_checkpointed(blocks[start : start + _BLOCKS_AT_A_TIME], x)
        return x


def run_checkpointed(blocks: Sequence[nn.Module], *inputs: Any) -> Any:
    """Run blocks one after the other, the first with all inputs, and keep no activations."""
    return checkpoint(
        _run, blocks, *inputs, use_reentrant=False, context_fn=lambda: _contexts(blocks)
    )


def checkpoint_activations(backbone: Module) -> Module:
    """Keep no activations within the trained stages of the networks in ``backbone``, in place.

    The backward pass then costs another forward pass of these stages. Losses, gradients and running
    statistics stay the same, as do parameter names. Stages that are frozen keep nothing anyway.

    Returns:
        ``backbone``.

    Raises:
        ConfigError: there is no network in it that can.
    """
    networks = [m for m in backbone.modules() if isinstance(m, ResNet | BottomUp)]
    if not networks:
        raise ConfigError(
            "MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS is for ResNets, RegNets, Swin, ViT and timm's "
            f"models, and {type(backbone).__name__} has none; set it False"
        )
    for network in networks:
        if isinstance(network, BottomUp):
            network.checkpoint_activations()
        else:
            _checkpoint_resnet(network)
    return backbone


def _checkpoint_resnet(resnet: ResNet) -> None:
    for index, name in enumerate(resnet.stage_names):
        if is_trained(resnet.stages[index]):
            stage = CheckpointedStage.of(resnet.stages[index])
            resnet.stages[index] = stage
            setattr(resnet, name, stage)


def _run(blocks: Sequence[nn.Module], *inputs: Any) -> Any:
    first, *others = blocks
    x = first(*inputs)
    for block in others:
        x = block(x)
    return x


def _contexts(blocks: Sequence[nn.Module]) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What the first pass and the one in the backward pass run in."""
    return nullcontext(), _statistics_left_alone(blocks)


@contextmanager
def _statistics_left_alone(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let batch norm count the batch in copies of its statistics, which are then thrown away.

    The original tensors may not be written to and set back: autograd has noted their version.
    """
    norms = [
        module
        for block in blocks
        for module in block.modules()
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and module.training
    ]
    originals = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, originals, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
