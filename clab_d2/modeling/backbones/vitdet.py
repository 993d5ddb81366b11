"""Detectron2's plain ViT, as in ViTDet, as a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import ViT
from detectron2.modeling.backbone.utils import get_abs_pos
from detectron2.modeling.backbone.vit import Block
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
from clab_d2.modeling.backbones.swin import detectron2_transformer


class _Size(NamedTuple):
    embed_dim: int
    depth: int
    num_heads: int


# DeiT's tiny and small, and the three sizes of the ViT paper (table 1).
SIZES = {
    "Ti": _Size(192, 12, 3),
    "S": _Size(384, 12, 6),
    "B": _Size(768, 12, 12),
    "L": _Size(1024, 24, 16),
    "H": _Size(1280, 32, 16),
}
_PATCH_SIZE = 16


class PlainViT(ViT, BottomUp):
    """Detectron2's plain ViT: windowed attention, global after each quarter of the blocks.

    All its maps have stride 16: ``res4`` is the last block's output, ``res4_<i>`` that of block i
    (from 0), for whoever asks for it.
    """

    input_format = IMAGENET_RGB
    config_key = "MODEL.VIT.SIZE"

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        window_size: int = 14,
        drop_path: float = 0.0,
        freeze_at: int = 0,
        out_features: Sequence[str] = ("res4",),
    ) -> None:
        """
        Args:
            embed_dim: channels.
            depth: number of blocks.
            num_heads: attention heads of each block.
            window_size: side of the windows, in patches.
            drop_path: probability at which the last block is left out in training.
            freeze_at: 1 freezes the embeddings, 2 the first block too, and so on.
            out_features: maps to return.
        """
        with_global = {round((part + 1) * depth / 4) - 1 for part in range(4)}
        with detectron2_transformer():
            super().__init__(
                patch_size=_PATCH_SIZE,
                embed_dim=embed_dim,
                depth=depth,
                num_heads=num_heads,
                drop_path_rate=drop_path,
                use_rel_pos=True,
                window_size=window_size,
                window_block_indexes=[i for i in range(depth) if i not in with_global],
            )
        self._blocks_of = {
            name: index for index, name in enumerate(map_names(depth)) if name in out_features
        }
        self.published = shapes_of(self)
        # Blocks behind the deepest map that is wanted serve nothing.
        del self.blocks[max(self._blocks_of.values()) + 1 :]
        shape = ShapeSpec(channels=embed_dim, stride=_PATCH_SIZE)
        self._shapes = dict.fromkeys(self._blocks_of, shape)
        if freeze_at > 0:
            self.pos_embed.requires_grad_(False)
            for module in (self.patch_embed, *self.blocks[: freeze_at - 1]):
                module.requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return _PATCH_SIZE

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> each wanted map (N, C, H / 16, W / 16), by name"""
        x = self.patch_embed(x)
        x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, tuple(x.shape[1:3]))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return {name: outputs[i].permute(0, 3, 1, 2) for name, i in self._blocks_of.items()}

    def layer_ids(self) -> dict[str, int]:
        """See :meth:`BottomUp.layer_ids`."""
        return {
            name: int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0
            for name, _ in self.named_parameters()
        }

    def checkpoint_activations(self) -> None:
        """See :meth:`BottomUp.checkpoint_activations`."""
        for number, block in enumerate(self.blocks):
            if is_trained(block):
                self.blocks[number] = _CheckpointedBlock.of(block)

    def from_published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`BottomUp.from_published`; ViT's, DeiT's and MAE's, resized where needed."""
        weights = dict(weights)
        positions = weights.get("pos_embed")
        if positions is not None and positions.shape[1] != self.pos_embed.shape[1]:
            weights["pos_embed"] = _resized(positions, self.pos_embed.shape[1] - 1)
        return super().from_published(weights)


class _CheckpointedBlock(Block):
    @classmethod
    def of(cls, block: Block) -> _CheckpointedBlock:
        with detectron2_transformer(), torch.device("meta"):  # all it holds is replaced
            new = cls(block.norm1.normalized_shape[0], block.attn.num_heads)
        new.window_size = block.window_size
        return take_over(new, block)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def map_names(depth: int) -> list[str]:
    """Names of the maps of a ViT with so many blocks, in order."""
    return [*(f"res4_{index}" for index in range(depth - 1)), "res4"]


def _resized(positions: Tensor, count: int) -> Tensor:
    """(1, 1 + n * n, C), the class token's first -> (1, 1 + count, C)"""
    side, new_side = round((positions.shape[1] - 1) ** 0.5), round(count**0.5)
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (new_side, new_side), mode="bicubic", align_corners=False)
    return F.pad(grid.flatten(2).transpose(1, 2), (0, 0, 1, 0)).index_copy(
        1, positions.new_zeros(1, dtype=int), positions[:, :1]
    )


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PlainViT:
    """The network of ``MODEL.VIT``, see :class:`PlainViT`; also without a neck."""
    size = cfg.MODEL.VIT.SIZE
    if size not in SIZES:
        raise ConfigError(f"MODEL.VIT.SIZE is {size!r}; choose one of {', '.join(SIZES)}")
    names = map_names(SIZES[size].depth)
    wanted = wanted_features(cfg, names)
    return PlainViT(
        **SIZES[size]._asdict(),
        window_size=cfg.MODEL.VIT.WINDOW_SIZE,
        drop_path=cfg.MODEL.BACKBONE.DROP_PATH,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        out_features=["res4"] if len(wanted) == len(names) else wanted,
    )
