"""Detectron2's Swin Transformers (T, S, B, L) as backbones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import SwinTransformer
from detectron2.modeling.backbone.swin import SwinTransformerBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.base import (
    IMAGENET_RGB,
    BottomUp,
    is_trained,
    shapes_of,
    wanted_features,
)
from clab_d2.modeling.backbones.replace import take_over


class _Size(NamedTuple):
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


# The Swin paper's section 3.3; heads have 32 channels each.
SIZES = {
    "T": _Size(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": _Size(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": _Size(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": _Size(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


class Swin(SwinTransformer, BottomUp):
    """Detectron2's Swin Transformer with maps ``res2`` to ``res5``, cut off behind the deepest
    that is wanted. Each map has a layer norm of its own, as in Detectron2."""

    input_format = IMAGENET_RGB
    config_key = "MODEL.SWIN.SIZE (and WINDOW_SIZE)"

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int = 7,
        drop_path: float = 0.0,
        freeze_at: int = 0,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    ) -> None:
        """
        Args:
            embed_dim: channels of ``res2``; each deeper map has twice as many.
            depths: blocks of each stage.
            num_heads: attention heads of each stage.
            window_size: side of the windows, in positions of a map.
            drop_path: probability at which the last block is left out in training.
            freeze_at: 1 freezes the patch embedding, 2 the first stage too, and so on.
            out_features: maps to return.
        """
        stages = [f"res{stage}" for stage in range(2, 2 + len(depths))]
        indices = sorted(stages.index(name) for name in out_features)
        with detectron2_transformer():
            super().__init__(
                embed_dim=embed_dim,
                depths=depths,
                num_heads=num_heads,
                window_size=window_size,
                drop_path_rate=drop_path,
                out_indices=indices,
                frozen_stages=freeze_at if freeze_at > 0 else -1,
            )
        self.published = shapes_of(self)
        self.num_layers = indices[-1] + 1
        del self.layers[self.num_layers :]
        self.layers[-1].downsample = None
        self._names = {f"p{index}": stages[index] for index in indices}

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {self._names[name]: shape for name, shape in super().output_shape().items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> each wanted map (N, C, H / stride, W / stride), by name"""
        return {self._names[name]: value for name, value in super().forward(x).items()}

    def layer_ids(self) -> dict[str, int]:
        """See :meth:`BottomUp.layer_ids`."""
        ids, before = {}, 0
        for name, _ in self.patch_embed.named_parameters(prefix="patch_embed"):
            ids[name] = 0
        for index, layer in enumerate(self.layers):
            for number, block in enumerate(layer.blocks):
                prefix = f"layers.{index}.blocks.{number}"
                ids.update((n, before + number + 1) for n, _ in block.named_parameters(prefix))
            before += len(layer.blocks)
            rest = [n for n, _ in self.named_parameters() if n not in ids]
            ids.update(
                (name, before)
                for name in rest
                if name.startswith((f"layers.{index}.downsample.", f"norm{index}."))
            )
        return ids

    def checkpoint_activations(self) -> None:
        """See :meth:`BottomUp.checkpoint_activations`."""
        for layer in self.layers:
            for number, block in enumerate(layer.blocks):
                if is_trained(block):
                    layer.blocks[number] = _CheckpointedBlock.of(block)


class _CheckpointedBlock(SwinTransformerBlock):
    @classmethod
    def of(cls, block: SwinTransformerBlock) -> _CheckpointedBlock:
        with torch.device("meta"):  # all it holds is replaced
            new = cls(
                block.dim, block.num_heads, block.window_size, block.shift_size, block.mlp_ratio
            )
        return take_over(new, block)

    def forward(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        # Another image may have gone through before this one's backward pass.
        height, width = self.H, self.W

        def run(x: Tensor, mask_matrix: Tensor) -> Tensor:
            self.H, self.W = height, width
            return SwinTransformerBlock.forward(self, x, mask_matrix)

        return checkpoint(run, x, mask_matrix, use_reentrant=False)


@contextmanager
def detectron2_transformer() -> Iterator[None]:
    """In which Detectron2's transformers can be made.

    They import parts of timm by names that work, with a warning, and take numbers out of tensors,
    which those on "meta" have not: a network made there, for its shapes, has this part on the CPU.
    """
    with warnings.catch_warnings(), torch.device("cpu"):
        warnings.filterwarnings("ignore", message="Importing from timm.models.layers")
        yield


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Swin:
    """The network of ``MODEL.SWIN``, see :class:`Swin`; also without a neck."""
    size = cfg.MODEL.SWIN.SIZE
    if size not in SIZES:
        raise ConfigError(f"MODEL.SWIN.SIZE is {size!r}; choose one of {', '.join(SIZES)}")
    stages = [f"res{stage}" for stage in range(2, 6)]
    return Swin(
        **SIZES[size]._asdict(),
        window_size=cfg.MODEL.SWIN.WINDOW_SIZE,
        drop_path=cfg.MODEL.BACKBONE.DROP_PATH,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        out_features=wanted_features(cfg, stages),
    )
