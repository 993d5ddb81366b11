"""A backbone in operators that graphs have."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.replace import replace_modules


def exported_backbone(backbone: nn.Module) -> nn.Module:
    """A copy whose convolutions pad by numbers known beforehand.

    timm's convolutions with TensorFlow's "SAME" padding work it out from the size that they are
    given. Traced for images of any size, that is a formula of the formulas of all convolutions
    before: with the five strides of a whole network, tracing did not end in a quarter of an hour.
    """
    copied = copy.deepcopy(backbone)
    replace_modules(
        copied, lambda part: FixedSamePadding(part) if isinstance(part, Conv2dSame) else None
    )
    return copied


class FixedSamePadding(nn.Module):
    """A :class:`Conv2dSame` on maps whose sides are multiples of its stride, as they are where
    images are padded to multiples of the deepest map's."""

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        both = []
        # F.pad begins with the last dimension.
        for kernel, stride, dilation in zip(
            conv.kernel_size[::-1], conv.stride[::-1], conv.dilation[::-1], strict=True
        ):
            total = max((kernel - 1) * dilation + 1 - stride, 0)
            both += [total // 2, total - total // 2]
        self.padding = both

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h / stride, w / stride)."""
        if x.shape[2] % self.stride[0] or x.shape[3] % self.stride[1]:
            raise ConfigError(
                f"MODEL.BACKBONE: a convolution of stride {self.stride[0]} on a map of "
                f"{x.shape[2]}x{x.shape[3]} positions can't be exported"
            )
        padded = F.pad(x, self.padding)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
