"""The one file of a trained model: its weights, and all that it takes to use them.

Beside the weights a file carries a :class:`ModelCard`: config, class names, versions and metrics,
as plain data under the key "clab_d2" of a ``.pth`` file, and as JSON under that name in the
metadata of a ``.safetensors`` file. docs/checkpoints.md describes both for other programs.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detectron2
import torch
from torch import Tensor

from clab_d2.checkpoint.safetensors_file import SUFFIX, write_safetensors
from clab_d2.errors import DataError
from clab_d2.io import atomic_write
from clab_d2.version import __version__

CARD_KEY = "clab_d2"
FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """What a model's file says of the model.

    Attributes:
        config: nested plain data, see :mod:`clab_d2.checkpoint.portable_config`.
        class_names: by class number.
        iterations: how many the model was trained for; None if that isn't known.
        metrics: of its evaluation, nested; empty if there was none.
        versions: of the programs that wrote the file, by name.
    """

    config: Mapping[str, Any]
    class_names: Sequence[str]
    iterations: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())

    def to_plain(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers only."""
        card = {
            "format": FORMAT,
            "class_names": list(self.class_names),
            "config": self.config,
            "iterations": self.iterations,
            "metrics": _finite(self.metrics),
            "versions": self.versions,
        }
        # By way of JSON: what it can't hold is found where it is written, and numpy's numbers go.
        return json.loads(json.dumps(card, default=float))


def read_card(content: Mapping[str, Any], source: str | os.PathLike[str]) -> ModelCard | None:
    """The card in what :func:`~clab_d2.checkpoint.safe_load.load_weights_file` gave, or None.

    Its config is only looked at, not believed: see
    :func:`~clab_d2.checkpoint.portable_config.config_from_plain`.

    Args:
        content: the file's.
        source: the file, for messages.

    Raises:
        DataError: there is a card, but it is none of this format.
    """
    plain = content.get(CARD_KEY)
    texts = content.get("metadata")
    if plain is None and isinstance(texts, Mapping) and CARD_KEY in texts:
        try:
            plain = json.loads(texts[CARD_KEY])
        except (TypeError, ValueError, RecursionError):
            plain = "no JSON"
    if plain is None:
        return None
    damaged = DataError(f"{source}: what it says of its model is damaged; get the file again")
    if not isinstance(plain, Mapping):
        raise damaged
    if plain.get("format") != FORMAT:
        raise DataError(
            f"{source}: what it says of its model has format {str(plain.get('format'))[:20]}, and "
            f"this version of clab_d2 knows {FORMAT}; take the version that wrote the file"
        )
    config, names = plain.get("config"), plain.get("class_names")
    metrics, versions = plain.get("metrics", {}), plain.get("versions", {})
    if not all(isinstance(part, Mapping) for part in (config, metrics, versions)):
        raise damaged
    if not isinstance(names, list) or not all(
        isinstance(name, str) and len(name) <= 1000 for name in names
    ):
        raise damaged
    iterations = plain.get("iterations")
    return ModelCard(
        config=config,
        class_names=names,
        iterations=iterations if type(iterations) is int else None,
        metrics=metrics,
        versions=versions,
    )


def write_model_file(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], card: ModelCard | None
) -> None:
    """Write a ``.pth`` or ``.safetensors`` file, whole or not at all.

    Args:
        path: the file; its suffix says which.
        weights: name -> tensor.
        card: what it says of the model; None for the weights alone.

    Raises:
        OSError: it can't be written.
    """
    # Copies, so that a view of a larger tensor does not bring all of it along.
    weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
    plain = {} if card is None else {CARD_KEY: card.to_plain()}
    if Path(path).suffix == SUFFIX:
        texts = {key: json.dumps(value) for key, value in plain.items()}
        write_safetensors(path, weights, {"__author__": "clab_d2", **texts})
        return
    content = {"model": weights, "__author__": "clab_d2", "matching_heuristics": False, **plain}
    with atomic_write(path, "wb") as file:
        torch.save(content, file)


def _finite(value: Any) -> Any:
    """A tree whose numbers JSON can hold: a metric that is not a number becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _versions() -> dict[str, str]:
    return {
        "clab_d2": __version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
