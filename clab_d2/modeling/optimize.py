"""What makes a trained detector faster without changing what it detects (beyond rounding)."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger(__name__)

# TEST.PRECISION -> what autocast computes in
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_to(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast for ``TEST.PRECISION``; for "fp32" whatever holds already."""
    dtype = PRECISIONS[precision]
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
        for name in ("backbone", "proposal_generator"):
            if hasattr(model, name):  # a model of the user's own may be made otherwise
                getattr(model, name).to(memory_format=torch.channels_last)
    if cfg.TEST.COMPILE and hasattr(model, "backbone"):
        # In place, so that hooks and attributes of the module stay.
        model.backbone.compile()
    return model


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> int:
    """Make every batch norm that follows a conv part of that conv, in place.

    Args:
        model: uses Detectron2's ``Conv2d``, whose ``norm`` follows it.

    Returns:
        How many there were.
    """
    folded = 0
    for conv in model.modules():
        norm = getattr(conv, "norm", None)
        if not isinstance(conv, nn.Conv2d) or not isinstance(
            norm, (FrozenBatchNorm2d, nn.BatchNorm2d)
        ):
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        conv.norm = None
        folded += 1
    return folded
