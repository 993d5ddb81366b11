"""Pictures of training clips, for TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from clab_d2.visualization import contact_sheet, draw_boxes

_CELL_WIDTH = 360


def draw_training_clip(clip: dict[str, Any], is_bgr: bool) -> np.ndarray:
    """Draw a training clip as the model gets it: the key frame, then its references.

    Args:
        clip: see :class:`clab_d2.modeling.temporal_detector.TemporalDetector`.
        is_bgr: whether its images have the channel order BGR.

    Returns:
        RGB, uint8 (H, W, 3), with the truth of every frame where it is known.
    """
    key = clip["frame_id"]
    cells, captions = [], []
    for frame, name in [(key, "key"), *((f, "reference") for f in clip["reference_frame_ids"])]:
        picture = _picture(clip["images"][frame], is_bgr)
        truth = clip["instances"].get(frame)
        if truth is not None:
            boxes, classes = truth.gt_boxes.tensor.cpu().numpy(), truth.gt_classes.tolist()
            picture = draw_boxes(picture, boxes, classes, style="truth")
        cells.append(picture)
        captions.append(f"{name} {frame}")
    return contact_sheet(cells, min(len(cells), 4), _CELL_WIDTH, captions)


def _picture(image: Tensor, is_bgr: bool) -> np.ndarray:
    """(3, H, W) uint8 -> (H, W, 3) uint8, RGB."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels[:, :, ::-1] if is_bgr else pixels)
