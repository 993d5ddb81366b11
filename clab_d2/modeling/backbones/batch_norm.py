"""Batch norm that trains weight and bias and keeps the statistics it was loaded with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.replace import replace_modules, take_over

Module = TypeVar("Module", bound=nn.Module)


class FixedStatisticsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises with its running statistics in training too.

    Weight and bias are trained; mean and variance are what was loaded, as in the release
    (docs/method.md, 'The detector').
    """

    def train(self, mode: bool = True) -> FixedStatisticsBatchNorm2d:
        super().train(mode)
        # In evaluation mode batch norm neither uses nor updates batch statistics.
        self.training = False
        return self


class FixedStatisticsBatchNormAct2d(FixedStatisticsBatchNorm2d):
    """The same for timm's batch norm that ends in a dropout (``drop``) and activation (``act``)."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)"""
        return self.act(self.drop(super().forward(x)))


def fix_batch_norm_statistics(
    module: Module, only: Callable[[nn.Module], bool] = lambda norm: True
) -> Module:
    """Make every 2D batch norm below ``module`` keep its running statistics, in place.

    They are replaced; names and parameters stay. Detectron2's ``FrozenBatchNorm2d`` (the frozen
    stages) is left.

    Args:
        module: a network.
        only: says of a batch norm whether it is meant.

    Returns:
        ``module``.

    Raises:
        ConfigError: one is of a kind that is not known.
    """
    replace_modules(module, lambda child: _fixed(child, only))
    return module


def _fixed(module: nn.Module, only: Callable[[nn.Module], bool]) -> nn.Module | None:
    if isinstance(module, FixedStatisticsBatchNorm2d) or not isinstance(
        module, nn.BatchNorm2d | nn.SyncBatchNorm
    ):
        return None
    if not only(module):
        return None
    kind: type[FixedStatisticsBatchNorm2d] = FixedStatisticsBatchNorm2d
    extra = {name for name, _ in module.named_children()}
    if extra == {"drop", "act"}:
        kind = FixedStatisticsBatchNormAct2d
    elif extra:
        raise ConfigError(
            f"MODEL.BACKBONE.FIX_BN_STATISTICS: {type(module).__name__} is no batch norm that it "
            "knows; set it False"
        )
    # On "meta", as all it holds is replaced.
    fixed = kind(
        module.num_features, module.eps, module.momentum, module.affine,
        module.track_running_stats, device="meta",
    )  # fmt: skip
    return take_over(fixed, module).train(module.training)
