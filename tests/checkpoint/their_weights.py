"""Small checkpoints with MMTracking's names and shapes, for tests that need no file."""

from __future__ import annotations

import torch
from torch import Tensor


def resnet_state(
    blocks: tuple[int, ...] = (1, 1, 1, 1), width: int = 4, groups: int = 1, prefix: str = ""
) -> dict[str, Tensor]:
    """A ResNet of bottleneck blocks with random weights, under torchvision's names."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv(name: str, *shape: int) -> None:
        state[f"{prefix}{name}.weight"] = torch.randn(shape, generator=generator)

    def norm(name: str, channels: int) -> None:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            value = torch.rand(channels, generator=generator) + 0.5
            state[f"{prefix}{name}.{kind}"] = value
        state[f"{prefix}{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", width, 3, 7, 7)
    norm("bn1", width)
    inputs = width
    for stage, num_blocks in enumerate(blocks):
        inner = width * groups * 2**stage
        outputs = 4 * width * 2**stage
        for block in range(num_blocks):
            name = f"layer{stage + 1}.{block}"
            conv(f"{name}.conv1", inner, inputs, 1, 1)
            norm(f"{name}.bn1", inner)
            conv(f"{name}.conv2", inner, inner // groups, 3, 3)
            norm(f"{name}.bn2", inner)
            conv(f"{name}.conv3", outputs, inner, 1, 1)
            norm(f"{name}.bn3", outputs)
            if block == 0:
                conv(f"{name}.downsample.0", outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return state


def detector_state(
    num_classes: int = 3,
    num_scales: int = 4,
    num_ratios: int = 3,
    num_fcs: int = 2,
    neck: int = 8,
    fc_dim: int = 16,
    selsa: bool = True,
    temporal_roi_align: bool = True,
    contrastive: bool = True,
    prefix: str = "detector.",
) -> dict[str, Tensor]:
    """A Faster R-CNN DC5 with the parts asked for, under MMTracking's names."""
    generator = torch.Generator().manual_seed(1)
    state = resnet_state(prefix=f"{prefix}backbone.")

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator)

    anchors = num_scales * num_ratios
    layer(f"{prefix}neck.convs.0.conv", neck, 128, 3, 3)
    layer(f"{prefix}rpn_head.rpn_conv", neck, neck, 3, 3)
    layer(f"{prefix}rpn_head.rpn_cls", anchors, neck, 1, 1)
    layer(f"{prefix}rpn_head.rpn_reg", anchors * 4, neck, 1, 1)
    head = f"{prefix}roi_head.bbox_head"
    if temporal_roi_align:
        layer(f"{prefix}roi_head.bbox_roi_extractor.embed_network.conv", neck, neck, 3, 3)
    for i in range(num_fcs):
        layer(f"{head}.shared_fcs.{i}", fc_dim, fc_dim if i else neck * 49)
        for part in ("fc_embed", "ref_fc_embed", "fc", "ref_fc") if selsa else ():
            layer(f"{head}.aggregator.{i}.{part}", fc_dim, fc_dim)
    layer(f"{head}.fc_cls", num_classes + 1, fc_dim)
    layer(f"{head}.fc_reg", num_classes * 4, fc_dim)
    if contrastive:
        layer("auxiliary.channel.0", 12, 64, 3, 3)
        layer("auxiliary.proj.0", 10, 12)
        layer("auxiliary.proj.2", 6, 10)
    return state
