"""Any model of timm that has feature maps, as a backbone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from timm.models import group_parameters
from torch import Tensor, nn

from clab_d2.errors import ConfigError, DataError
from clab_d2.modeling.backbones.base import (
    BottomUp,
    InputFormat,
    is_trained,
    shapes_of,
    wanted_features,
)
from clab_d2.modeling.backbones.batch_norm import fix_batch_norm_statistics

_COUNTER = "num_batches_tracked"


class TimmBackbone(BottomUp):
    """A model of timm without its classifier, cut off behind the deepest map that is wanted.

    Maps are ``res<n>`` for stride 2**n; of several maps of one stride, as plain ViTs have them,
    only the deepest, and the others are ``res<n>_<index>`` by timm's count. The parameters' names
    are timm's, under ``net``. Images need no particular size, but for models that take one alone.
    """

    config_key = "MODEL.TIMM.NAME"

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] | Callable[[Sequence[str]], Sequence[str]] | None = None,
        *,
        drop_path: float = 0.0,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            name: of the model, as ``timm.list_models()`` has it.
            out_features: names of the maps to return, or a function that chooses among all names;
                by default the deepest of each stride.
            drop_path: probability at which the last block is left out in training (stochastic
                depth); it grows from 0 at the first.
            freeze_at: 1 freezes the stem, 2 the first stage too, and so on; stages are timm's.

        Raises:
            ConfigError: timm has no such model, or the model has no maps or no drop path.
        """
        super().__init__()
        self.name = name
        net = _create(name, drop_path)
        # What published weights consist of, before the parts that no map needs are cut off.
        self.published = shapes_of(net)
        maps = _name_maps(net.feature_info)
        if out_features is None:
            out_features = [key for key in maps if "_" not in key]
        elif callable(out_features):
            out_features = out_features(list(maps))
        unknown = [key for key in out_features if key not in maps]
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is no map of {name}; choose among {', '.join(maps)}")
        self._indices = {key: maps[key] for key in maps if key in out_features}
        net.prune_intermediate_layers(
            list(self._indices.values()), prune_norm=True, prune_head=True
        )
        self.net = net
        infos = [net.feature_info[index] for index in self._indices.values()]
        self._shapes = {
            key: ShapeSpec(channels=info["num_chs"], stride=info["reduction"])
            for key, info in zip(self._indices, infos, strict=True)
        }
        data = net.pretrained_cfg
        self.input_format = InputFormat(
            tuple(255 * value for value in data["mean"]),
            tuple(255 * value for value in data["std"]),
        )
        self._divisibility = self._find_divisibility()
        self._freeze(freeze_at)

    @torch.no_grad()
    def _find_divisibility(self) -> int:
        """The deepest map's stride, so that all maps cover the same pixels, or, for networks whose
        windows don't fit that, the size of the images that they were made for."""
        stride = max(int(shape.stride) for shape in self._shapes.values())
        if not self.net.pretrained_cfg["fixed_input_size"]:
            return stride
        was_training = self.training
        try:
            for size in (stride, math.lcm(stride, self.net.pretrained_cfg["input_size"][1])):
                try:
                    self.eval()(torch.zeros(1, 3, size, 2 * size))
                except (AssertionError, RuntimeError):
                    continue
                return size
        finally:
            self.train(was_training)
        raise ConfigError(
            f"MODEL.TIMM.NAME: timm's {self.name} takes images of one size alone; choose another"
        )

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at < 1:
            return
        stages = group_parameters(self.net, self.net.group_matcher(coarse=True))
        for stage in sorted(stages)[:freeze_at]:
            for name in stages[stage]:
                self.net.get_parameter(name).requires_grad_(False)
        fix_batch_norm_statistics(self.net, only=lambda norm: not is_trained(norm))

    @property
    def size_divisibility(self) -> int:
        return self._divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> each wanted map (N, C, H / stride, W / stride), by name"""
        maps = self.net.forward_intermediates(
            x, indices=list(self._indices.values()), intermediates_only=True, output_fmt="NCHW"
        )
        return dict(zip(self._indices, maps, strict=True))

    def layer_ids(self) -> dict[str, int]:
        """See :meth:`BottomUp.layer_ids`; the layers are those of timm's layer-wise decay."""
        layers = group_parameters(self.net, self.net.group_matcher(coarse=False), reverse=True)
        return {f"net.{name}": layer for name, layer in layers.items()}

    def checkpoint_activations(self) -> None:
        """See :meth:`BottomUp.checkpoint_activations`; by timm's own switch."""
        learns = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]
        if any(norm.training for norm in learns):
            raise ConfigError(
                "MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS: timm's models would count each batch twice "
                "in their batch norms; set MODEL.BACKBONE.FIX_BN_STATISTICS True"
            )
        try:
            self.net.set_grad_checkpointing(True)
        except AssertionError:  # how timm says so
            raise ConfigError(
                f"MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS: timm's {self.name} can't; set it False"
            ) from None

    def from_published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`BottomUp.from_published`.

        Weights go by timm's names; by order, where a publisher has other names for the same tensors
        in the same order (every shape is checked, the classifier's too); else through the filter
        that timm has for an architecture's first publisher.
        """
        own = {name.removeprefix("net."): value for name, value in self.state_dict().items()}
        named = dict(weights)
        if not _covers(named, own):
            renamed = self._by_order(named)
            if renamed is None:
                renamed = self._filtered(named)
            if renamed is None or not _covers(renamed, own):
                raise DataError(
                    f"they are no weights of timm's {self.name} "
                    f"({self._first_difference(named)}); set MODEL.TIMM.NAME to their model's name"
                )
            named = renamed
        self.check_published(named)
        return {f"net.{name}": named[name] for name in own if name in named}

    def _by_order(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        theirs = [value for name, value in weights.items() if not name.endswith(_COUNTER)]
        ours = {n: shape for n, shape in self.published.items() if not n.endswith(_COUNTER)}
        if [tuple(value.shape) for value in theirs] != list(ours.values()):
            return None
        return dict(zip(ours, theirs, strict=True))

    def _filtered(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return None
        try:
            return dict(convert(dict(weights), self.net))
        except (KeyError, RuntimeError, ValueError, AttributeError, IndexError):
            return None  # made for other weights than these

    def _first_difference(self, weights: Mapping[str, Tensor]) -> str:
        theirs = [(n, tuple(v.shape)) for n, v in weights.items() if not n.endswith(_COUNTER)]
        ours = [(n, s) for n, s in self.published.items() if not n.endswith(_COUNTER)]
        for (name, shape), (own, wanted) in zip(theirs, ours, strict=False):
            if shape != wanted:
                return f"{name} of shape {shape} stands where {own} of shape {wanted} should"
        return f"they are {len(theirs)} tensors, not {len(ours)}"


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The model of ``MODEL.TIMM.NAME``, see :class:`TimmBackbone`; also without a neck."""
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        lambda offered: wanted_features(cfg, offered),
        drop_path=cfg.MODEL.BACKBONE.DROP_PATH,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def _create(name: str, drop_path: float) -> nn.Module:
    """The model as timm makes it, for images of any size where it can be."""
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        meant = f"; there are {', '.join(near)}" if near else "; see timm.list_models()"
        raise ConfigError(f"MODEL.TIMM.NAME {name!r} is no model of timm {timm.__version__}{meant}")
    arguments: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        try:
            # Models with windows or position embeddings.
            net = timm.create_model(name, dynamic_img_size=True, **arguments)
        except TypeError:
            net = timm.create_model(name, **arguments)
    except TypeError:
        raise ConfigError(
            f"MODEL.BACKBONE.DROP_PATH: timm's {name} has no drop path; set it 0"
        ) from None
    if not hasattr(net, "forward_intermediates") or not getattr(net, "feature_info", None):
        raise ConfigError(f"MODEL.TIMM.NAME: timm's {name} gives no feature maps; choose another")
    return net


def _name_maps(infos: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Names of a model's maps -> timm's indices of them, in order."""
    names: dict[str, int] = {}
    for index, info in enumerate(infos):
        name = f"res{round(math.log2(info['reduction']))}"
        deeper = [round(math.log2(other["reduction"])) for other in infos[index + 1 :]]
        names[f"{name}_{index}" if int(name[3:]) in deeper else name] = index
    return names


def _covers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return all(name in weights or name.endswith(_COUNTER) for name in own)
