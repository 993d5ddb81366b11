"""From a frame to what the frame's graph takes, to the pixel as in training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from clab_d2.errors import DataError


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, normalisation and padding.

    Attributes:
        channels: order of the model's colour channels, "RGB" or "BGR".
        backend: what resizes, "opencv" or "pillow" (``INPUT.RESIZE_BACKEND``).
        short_edge, max_size: length of the short edge, and limit of the long one; 0: as it is.
        pixel_mean, pixel_std: a number for each channel.
        divisibility: images are padded to multiples of it.
        size: (height, width) after padding, where the graph takes one size only.
    """

    channels: str
    backend: str
    short_edge: int
    max_size: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    divisibility: int
    size: tuple[int, int] | None = None

    def resize(self, image: np.ndarray) -> np.ndarray:
        """RGB, uint8 (h, w, 3) -> the model's channels, uint8 (H, W, 3)."""
        if self.channels == "BGR":
            image = image[:, :, ::-1]
        height, width = self._resized_shape(*image.shape[:2])
        if self.short_edge == 0:
            return image
        if self.backend == "opencv":
            return cv2.resize(
                np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR
            )
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        return np.asarray(resized)

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Rounded as the backend's origin does: :func:`clab_d2.data.clip_augmentation.
        resize_transform`."""
        short, long = min(height, width), max(height, width)
        if self.backend == "opencv":
            most, least = max(self.max_size, self.short_edge), min(self.max_size, self.short_edge)
            scale = min(most / long, least / short)
            return int(height * scale + 0.5), int(width * scale + 0.5)
        scale = self.short_edge / short
        sides = [self.short_edge, scale * width] if height < width else [
            scale * height, float(self.short_edge)
        ]  # fmt: skip
        if max(sides) > self.max_size:
            scale = self.max_size / max(sides)
            sides = [side * scale for side in sides]
        return int(sides[0] + 0.5), int(sides[1] + 0.5)

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """Normalise, then zero-pad.

        Args:
            image: uint8 (H, W, 3), resized.

        Returns:
            float32 (1, 3, H', W').

        Raises:
            DataError: the graph takes frames of another size.
        """
        height, width = image.shape[:2]
        step = max(self.divisibility, 1)
        padded = -(-height // step) * step, -(-width // step) * step
        if self.size is not None and padded != tuple(self.size):
            raise DataError(
                f"a frame becomes {padded[0]}x{padded[1]} pixels, but the model was exported for "
                f"{self.size[0]}x{self.size[1]}; export it without --size"
            )
        result = np.zeros((1, 3, *padded), np.float32)
        mean, std = (np.array(v, np.float32)[:, None, None]
                     for v in (self.pixel_mean, self.pixel_std))  # fmt: skip
        np.subtract(image.transpose(2, 0, 1), mean, out=result[0, :, :height, :width])
        result[0, :, :height, :width] /= std
        return result
