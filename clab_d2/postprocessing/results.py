"""Post-processing of a COCO result list, video by video."""

from __future__ import annotations

import dataclasses

import numpy as np

from clab_d2.errors import DataError
from clab_d2.evaluation.boxes import xywh_to_xyxy
from clab_d2.evaluation.detections import COCOResults
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.postprocessing.base import PostProcessing, VideoDetections


def postprocess_results(
    results: COCOResults, truth: GroundTruth, method: PostProcessing, source: str
) -> COCOResults:
    """Process the detections of each video of a dataset.

    Neighbouring frames are those next to each other among a video's annotated frames and those with
    detections: where every fifth frame is annotated and detected in, five frames on. A still image
    is a video of one frame. Detections that are not finite, or of images that the dataset lacks,
    stay as they are.

    Args:
        results: N detections.
        truth: the dataset, for videos and frame numbers.
        method: the post-processing.
        source: of the results, for messages.

    Returns:
        What is kept, with new scores, in the order given.

    Raises:
        DataError: a score is negative, or a frame with detections has no ``frame_id``.
    """
    image = np.searchsorted(truth.image_ids, results.image_id)
    image = np.minimum(image, max(len(truth.image_ids) - 1, 0))
    concerned = np.isfinite(results.score) & np.isfinite(results.box).all(axis=1)
    if len(truth.image_ids):
        concerned &= truth.image_ids[image] == results.image_id
    else:
        concerned[:] = False
    if results.score[concerned].min(initial=0) < 0:
        raise DataError(f"{source}: a score is negative; post-processing needs scores from 0 on")
    rows = np.flatnonzero(concerned)
    position = _positions(truth, image[rows])[image[rows]]
    video = truth.video_of_image[image[rows]]
    by_video = np.argsort(video, kind="stable")
    cuts = np.flatnonzero(np.diff(video[by_video])) + 1

    kept = ~concerned
    score = results.score.copy()
    for part in np.split(by_video, cuts) if len(rows) else ():
        of_video = rows[part]
        rescored = method(
            VideoDetections(
                frame=position[part],
                box=xywh_to_xyxy(results.box[of_video]),
                score=results.score[of_video],
                class_index=results.category_id[of_video],
            )
        )
        kept[of_video[rescored.rows]] = True
        score[of_video[rescored.rows]] = rescored.score
    return dataclasses.replace(results, score=score).select(kept)


def _positions(truth: GroundTruth, detected: np.ndarray) -> np.ndarray:
    """(I,) each looked-at frame's position among those of its video."""
    looked_at = truth.annotated.copy()
    looked_at[detected] = True
    images = np.flatnonzero(looked_at)
    if (truth.frame_of_image[images] < 0).any():
        raise DataError(
            f"{truth.source}: a frame of a video has no frame_id, so post-processing cannot tell "
            "which frames are neighbours; number them from 0, as datasets/README.md says"
        )
    video, frame = truth.video_of_image[images], truth.frame_of_image[images]
    order = np.lexsort((frame, video))
    begins = np.flatnonzero(np.diff(video[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(begins, np.diff([*begins, len(order)]))
    position = np.zeros(len(truth.image_ids), dtype=np.int64)
    position[images[order]] = rank
    return position
