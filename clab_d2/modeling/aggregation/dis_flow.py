"""Optical flow by dense inverse search: no network, no weights, made for CPUs.

Source: "Fast Optical Flow using Dense Inverse Search" (ECCV 2016); OpenCV's implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from clab_d2.modeling.aggregation.optical_flow import OpticalFlow, resized

# What red, green and blue count for brightness (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


class DISFlow(OpticalFlow):
    """Optical flow by OpenCV's ``DISOpticalFlow`` of the frames' brightness.

    It runs on the CPU, wherever the images are, and has nothing that could be trained.
    """

    # Where there are few of its patches, of 8 x 8 pixels, it finds little.
    min_side = 64

    def encode(self, images: Tensor) -> tuple[Tensor]:
        """Brightness of each frame: (N, 1, h, w) uint8, of :meth:`size_for`."""
        with torch.autocast(images.device.type, enabled=False):
            pixels = self.pixels(images, torch.float32)
            luma = (pixels * pixels.new_tensor(_LUMA).view(-1, 1, 1)).sum(dim=1, keepdim=True)
            return (luma.round().clamp(0, 255).to(torch.uint8),)

    def forward(self, key: Sequence[Tensor], references: Sequence[Sequence[Tensor]]) -> Tensor:
        """See :meth:`OpticalFlow.forward`; (T, 2, h, w) float32, of :meth:`size_for`."""
        (own,) = key
        height, width = own.shape[-2:]
        # Made here: it can be neither copied nor pickled, as a detector is.
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        start = _pixels(own)
        flows = [
            search.calc(start, _pixels(resized(other.float(), (height, width))), None)
            for (other,) in references
        ]
        flow = torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(own.device)
        return flow / flow.new_tensor([width, height]).view(1, 2, 1, 1)


def _pixels(luma: Tensor) -> np.ndarray:
    """(1, 1, h, w) as OpenCV takes it: (h, w) uint8."""
    return luma[0, 0].round().to(torch.uint8).cpu().numpy()
