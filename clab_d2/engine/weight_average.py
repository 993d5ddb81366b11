"""An exponential moving average of the weights, evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_PREFIX = "module."


class WeightAverage(HookBase):
    """Averages the weights of a model after each iteration: ``decay`` of the average so far and
    ``1 - decay`` of the new weights; the first iteration's are taken as they are.

    One training's figures depend on which batches came last; those of an average over some hundred
    iterations do less so. Buffers (statistics of batch norms) are the model's own.

    Belongs behind the optimizer's step and before checkpoints and evaluations. Checkpoints hold the
    average beside the weights that the training goes on with (:func:`average_in`).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: the one that is trained, without what several processes wrap round it: all of
                them have the same weights, and each averages its own.
            decay: from 0 to less than 1.
        """
        self._model = model
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def model(self) -> nn.Module:
        """The model with averaged weights."""
        return self._averaged.module

    def after_step(self) -> None:
        self._averaged.update_parameters(self._model)

    def state_dict(self) -> dict[str, Any]:
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.load_state_dict(state)


def average_in(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The averaged weights in a checkpoint of a training, None if it has none."""
    state: Any = checkpoint
    for key in ("trainer", "hooks", WeightAverage.__qualname__):
        state = state.get(key) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping):
        return None
    return {
        name.removeprefix(_PREFIX): value
        for name, value in state.items()
        if name.startswith(_PREFIX)
    }
