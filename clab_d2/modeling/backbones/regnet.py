"""Detectron2's RegNets, of the sizes that their paper names, as backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import RegNet
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem
from torch import Tensor

from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.activation_checkpointing import CheckpointedStage
from clab_d2.modeling.backbones.base import (
    BottomUp,
    InputFormat,
    is_trained,
    shapes_of,
    wanted_features,
)


class _Size(NamedTuple):
    """The parameters of "Designing Network Design Spaces", section 3.3."""

    depth: int
    w_a: float
    w_0: int
    w_m: float
    group_width: int


# The paper's tables of RegNetX and RegNetY; the latter have squeeze-and-excitation.
SIZES = {
    "X-200MF": _Size(13, 36.44, 24, 2.49, 8),
    "X-400MF": _Size(22, 24.48, 24, 2.54, 16),
    "X-600MF": _Size(16, 36.97, 48, 2.24, 24),
    "X-800MF": _Size(16, 35.73, 56, 2.28, 16),
    "X-1.6GF": _Size(18, 34.01, 80, 2.25, 24),
    "X-3.2GF": _Size(25, 26.31, 88, 2.25, 48),
    "X-4.0GF": _Size(23, 38.65, 96, 2.43, 40),
    "X-6.4GF": _Size(17, 60.83, 184, 2.07, 56),
    "X-8.0GF": _Size(23, 49.56, 80, 2.88, 120),
    "X-12GF": _Size(19, 73.36, 168, 2.37, 112),
    "X-16GF": _Size(22, 55.59, 216, 2.1, 128),
    "X-32GF": _Size(23, 69.86, 320, 2.0, 168),
    "Y-200MF": _Size(13, 36.44, 24, 2.49, 8),
    "Y-400MF": _Size(16, 27.89, 48, 2.09, 8),
    "Y-600MF": _Size(15, 32.54, 48, 2.32, 16),
    "Y-800MF": _Size(14, 38.84, 56, 2.4, 16),
    "Y-1.6GF": _Size(27, 20.71, 48, 2.65, 24),
    "Y-3.2GF": _Size(21, 42.63, 80, 2.66, 24),
    "Y-4.0GF": _Size(22, 31.41, 96, 2.24, 64),
    "Y-6.4GF": _Size(25, 33.22, 112, 2.27, 72),
    "Y-8.0GF": _Size(17, 76.82, 192, 2.19, 56),
    "Y-12GF": _Size(19, 73.36, 168, 2.37, 112),
    "Y-16GF": _Size(18, 106.23, 200, 2.48, 112),
    "Y-32GF": _Size(20, 115.89, 232, 2.53, 232),
}
_STAGES = ("res2", "res3", "res4", "res5")


class RegNetBackbone(RegNet, BottomUp):
    """Detectron2's RegNet with maps ``res2`` to ``res5``, cut off behind the deepest wanted."""

    config_key = "MODEL.REGNET.NAME"
    # As pycls, whose weights Detectron2's model zoo has, trains them.
    input_format = InputFormat((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), "BGR")

    def __init__(
        self,
        *,
        depth: int,
        w_a: float,
        w_0: int,
        w_m: float,
        group_width: int,
        se_ratio: float = 0.0,
        freeze_at: int = 0,
        norm: str = "BN",
        out_features: Sequence[str] = _STAGES,
    ) -> None:
        """
        Args:
            depth, w_a, w_0, w_m, group_width: see :class:`detectron2.modeling.backbone.RegNet`.
            se_ratio: squeeze-and-excitation's part of the channels; 0 for none.
            freeze_at: 1 freezes the stem, 2 the first stage too, and so on.
            norm: kind of normalisation, see :func:`detectron2.layers.get_norm`.
            out_features: maps to return.
        """
        indices = sorted(_STAGES.index(name) for name in out_features)
        super().__init__(
            stem_class=SimpleStem,
            stem_width=32,
            block_class=ResBottleneckBlock,
            depth=depth,
            w_a=w_a,
            w_0=w_0,
            w_m=w_m,
            group_width=group_width,
            se_ratio=se_ratio,
            freeze_at=freeze_at,
            norm=norm,
            out_features=[f"s{index + 1}" for index in indices],
        )
        self.published = shapes_of(self)
        for _, name in self.stages_and_names[indices[-1] + 1 :]:
            delattr(self, name)
        del self.stages_and_names[indices[-1] + 1 :]

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides[name] for name in self._out_features)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {_stage(name): shape for name, shape in super().output_shape().items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> each wanted map (N, C, H / stride, W / stride), by name"""
        return {_stage(name): value for name, value in super().forward(x).items()}

    def layer_ids(self) -> dict[str, int]:
        """See :meth:`BottomUp.layer_ids`."""
        ids = {name: 0 for name, _ in self.stem.named_parameters(prefix="stem")}
        depth = 0
        for stage, stage_name in self.stages_and_names:
            for block_name, block in stage.named_children():
                depth += 1
                prefix = f"{stage_name}.{block_name}"
                ids.update((name, depth) for name, _ in block.named_parameters(prefix))
        return ids

    def checkpoint_activations(self) -> None:
        """See :meth:`BottomUp.checkpoint_activations`."""
        for index, (stage, name) in enumerate(self.stages_and_names):
            if is_trained(stage):
                checkpointed = CheckpointedStage.of(stage)
                setattr(self, name, checkpointed)
                self.stages_and_names[index] = (checkpointed, name)


def _stage(name: str) -> str:
    """Detectron2's name of a RegNet's map -> that of a ResNet's map of its stride."""
    return _STAGES[int(name[1:]) - 1]


@BACKBONE_REGISTRY.register()
def build_regnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RegNetBackbone:
    """The network of ``MODEL.REGNET``, see :class:`RegNetBackbone`; also without a neck."""
    name = cfg.MODEL.REGNET.NAME
    if name not in SIZES:
        raise ConfigError(f"MODEL.REGNET.NAME is {name!r}; choose one of {', '.join(SIZES)}")
    return RegNetBackbone(
        **SIZES[name]._asdict(),
        se_ratio=0.25 if name.startswith("Y") else 0.0,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=cfg.MODEL.REGNET.NORM,
        out_features=wanted_features(cfg, _STAGES),
    )
