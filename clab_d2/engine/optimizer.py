"""SGD or AdamW with Detectron2's parameter groups, and clipping of the whole model's gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import (
    _generate_optimizer_class_with_gradient_clipping,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
)
from torch import nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.base import bottom_up_of, layer_ids

# As ViT's and Swin's are called in Detectron2 and timm.
_POSITION_EMBEDDINGS = (
    "pos_embed", "absolute_pos_embed", "relative_position_bias_table", "cls_token", "reg_token",
)  # fmt: skip

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "AdamW": torch.optim.AdamW,
}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of ``SOLVER.OPTIMIZER``.

    Learning rates and weight decays are per group as in Detectron2 (``WEIGHT_DECAY_NORM``,
    ``BIAS_LR_FACTOR``, ``WEIGHT_DECAY_BIAS``); ``BACKBONE_MULTIPLIER`` and ``LAYER_DECAY`` lower
    the learning rates of the network below the neck. Position embeddings have no weight decay.

    On top of Detectron2's ``CLIP_GRADIENTS``, the ``CLIP_TYPE`` "full_model" scales all gradients
    together so that their common norm is at most ``CLIP_VALUE``. It does so inside ``step()``:
    after mixed precision has taken out its scale.

    Raises:
        ConfigError: the optimizer is unknown.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise ConfigError(
            f"SOLVER.OPTIMIZER {solver.OPTIMIZER!r} is unknown; choose one of {sorted(OPTIMIZERS)}"
        )
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=learning_rate_factors(cfg, model),
        overrides={name: {"weight_decay": 0.0} for name in _POSITION_EMBEDDINGS},
    )
    arguments: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        arguments.update(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    return _with_clipping(cfg, OPTIMIZERS[solver.OPTIMIZER])(parameters, foreach=True, **arguments)


def learning_rate_factors(cfg: CfgNode, model: nn.Module) -> Callable[[str], float]:
    """What each parameter's learning rate is multiplied by, by its name.

    The network below the neck has ``BACKBONE_MULTIPLIER``, and of its layers the deepest
    ``LAYER_DECAY`` once, the one before twice, and so on down to the stem. All else has 1.
    """
    solver = cfg.SOLVER
    if solver.BACKBONE_MULTIPLIER == solver.LAYER_DECAY == 1 or not hasattr(model, "backbone"):
        return lambda name: 1.0
    network = bottom_up_of(model.backbone)
    prefix = next(f"{name}." for name, module in model.named_modules() if module is network)
    layers = {prefix + name: layer for name, layer in layer_ids(network).items()}
    deepest = max(layers.values())

    def factor(name: str) -> float:
        if name not in layers:
            return 1.0
        return solver.BACKBONE_MULTIPLIER * solver.LAYER_DECAY ** (deepest + 1 - layers[name])

    return factor


def _with_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
        return maybe_add_gradient_clipping(cfg, optimizer)
    max_norm, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    def clip_all(parameters: Iterable[torch.Tensor]) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    return _generate_optimizer_class_with_gradient_clipping(optimizer, global_clipper=clip_all)
