"""Post-processing of Detectron2's instances, all frames of a video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances

from clab_d2.postprocessing.base import PostProcessing, VideoDetections


def postprocess_instances(frames: Sequence[Instances], method: PostProcessing) -> list[Instances]:
    """Process the detections of a video.

    Args:
        frames: of each frame, in order, none left out, on the CPU: ``pred_boxes``, ``scores``,
            ``pred_classes`` and whatever else.
        method: the post-processing.

    Returns:
        What is kept of each frame, with new ``scores``, which fall.
    """
    counts = [len(instances) for instances in frames]
    if sum(counts) == 0:
        return list(frames)
    rescored = method(
        VideoDetections(
            frame=np.repeat(np.arange(len(frames)), counts),
            box=torch.cat([i.pred_boxes.tensor for i in frames]).double().numpy(),
            score=torch.cat([i.scores for i in frames]).double().numpy(),
            class_index=torch.cat([i.pred_classes for i in frames]).numpy(),
        )
    )
    starts = np.cumsum([0, *counts])
    cuts = np.searchsorted(rescored.rows, starts)
    processed = []
    for number, instances in enumerate(frames):
        part = slice(cuts[number], cuts[number + 1])
        order = np.argsort(-rescored.score[part], kind="stable")
        kept = instances[torch.from_numpy(rescored.rows[part][order] - starts[number])]
        kept.scores = torch.from_numpy(rescored.score[part][order]).to(instances.scores)
        processed.append(kept)
    return processed
