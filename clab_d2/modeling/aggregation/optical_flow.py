"""Optical flow for feature maps: what gives it, and maps warped along it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OpticalFlow(nn.Module, ABC):
    """Flow between frames in two parts: of each frame alone, and of a pair.

    Attributes:
        stride: what the sides of the flow's images are multiples of.
        min_side: their least side in pixels. Smaller images are taken larger.
    """

    stride: int = 1
    min_side: int = 1

    def __init__(
        self,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        channel_order: str = "RGB",
        scale: float = 0.5,
    ) -> None:
        """
        Args:
            pixel_mean, pixel_std: what the images that :meth:`encode` gets are normalised with.
            channel_order: theirs, "RGB" or "BGR".
            scale: pixels of the flow's images per pixel of theirs.
        """
        super().__init__()
        self.channel_order = channel_order
        self.scale = scale
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @abstractmethod
    def encode(self, images: Tensor) -> Sequence[Tensor]:
        """What is kept of each frame.

        Args:
            images: (N, 3, H, W), normalised.

        Returns:
            Tensors whose first dimension is N.
        """

    @abstractmethod
    def forward(self, key: Sequence[Tensor], references: Sequence[Sequence[Tensor]]) -> Tensor:
        """Flow from a key frame to its references.

        Args:
            key: what :meth:`encode` gave for it, (1, ...) each.
            references: the same of T >= 1 others. One of another size is stretched to the key
                frame's.

        Returns:
            (T, 2, h, w): how far each position of the key frame has moved in each reference, x and
            y, in widths and heights of the image.
        """

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that images of a size are taken at."""
        scale = max(self.scale, self.min_side / min(height, width))
        rounded = [self.stride * round(side * scale / self.stride) for side in (height, width)]
        return max(self.min_side, rounded[0]), max(self.min_side, rounded[1])

    def pixels(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalised (N, 3, H, W) as the flow sees them: RGB from 0 to 255, at its size."""
        pixels = images.to(dtype) * self.pixel_std + self.pixel_mean
        if self.channel_order == "BGR":
            pixels = pixels.flip(1)
        return resized(pixels, self.size_for(*map(int, images.shape[-2:])))


def warp(feature: Tensor, flow: Tensor, size: Sequence[int]) -> Tensor:
    """A map as it lies in another frame: bilinear samples of it where the flow leads.

    Samples beyond the border take what is on it.

    Args:
        feature: (1, C, h', w').
        flow: (1, 2, h, w), from the other frame to this one, in widths and heights.
        size: height and width of the result.

    Returns:
        (1, C, *size), in single precision at least.
    """
    dtype = torch.promote_types(feature.dtype, torch.float32)
    flow = resized(flow.to(dtype), size)
    # Positions from -1 to 1, which are the map's outer borders.
    y, x = (
        (2 * torch.arange(side, device=flow.device, dtype=dtype) + 1) / side - 1 for side in size
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy")) + 2 * flow
    with torch.autocast(feature.device.type, enabled=False):
        return F.grid_sample(
            feature.to(dtype),
            grid.permute(0, 2, 3, 1),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, *size), averaged where it gets smaller; ``x`` itself where it has the size."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True)
