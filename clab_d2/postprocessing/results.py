"""Post-processing of a COCO result list, video by video and shot by shot."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from clab_d2.errors import DataError
from clab_d2.evaluation.boxes import xywh_to_xyxy
from clab_d2.evaluation.detections import COCOResults
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.postprocessing.base import PostProcessing, VideoDetections


@dataclass(frozen=True)
class PostProcessResults:
    """Applies a method to the detections of each video of a dataset, and of each of its shots.

    Neighbouring frames are those next to each other among a video's annotated frames and those with
    detections: where every fifth frame is annotated and detected in, five frames on. A still image
    is a video of one frame. Detections that are not finite, or of images that the dataset lacks,
    stay as they are.

    Attributes:
        method: the post-processing.
    """

    method: PostProcessing

    def __call__(self, results: COCOResults, truth: GroundTruth) -> COCOResults:
        """What is kept of N detections, with new scores, in the order given.

        Raises:
            DataError: a score is negative, or a frame has no ``frame_id``.
        """
        video, shot, position, concerned = _places(results, truth)
        rows = np.flatnonzero(concerned)
        by_video = rows[np.lexsort((shot[rows], video[rows]))]
        ends = (np.diff(video[by_video]) != 0) | (np.diff(shot[by_video]) != 0)
        cuts = np.flatnonzero(ends) + 1
        kept = ~concerned
        score = results.score.copy()
        for of_video in np.split(by_video, cuts) if len(rows) else ():
            rescored = self.method(
                VideoDetections(
                    frame=position[of_video],
                    box=xywh_to_xyxy(results.box[of_video]),
                    score=results.score[of_video],
                    class_index=results.category_id[of_video],
                )
            )
            kept[of_video[rescored.rows]] = True
            score[of_video[rescored.rows]] = rescored.score
        return dataclasses.replace(results, score=score).select(kept)


def _places(
    results: COCOResults, truth: GroundTruth
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N,) each detection's video, shot, its frame's position, and whether these are known."""
    count = len(results.score)
    if len(truth.image_ids) == 0:
        nowhere = np.zeros(count, np.int64)
        return nowhere, nowhere, nowhere, np.zeros(count, bool)
    image = np.minimum(np.searchsorted(truth.image_ids, results.image_id), len(truth.image_ids) - 1)
    concerned = truth.image_ids[image] == results.image_id
    concerned &= np.isfinite(results.score) & np.isfinite(results.box).all(axis=1)
    if results.score[concerned].min(initial=0) < 0:
        raise DataError(
            "a detection's score is negative; post-processing needs scores from 0 on, such as "
            "probabilities"
        )
    position = _positions(truth, image[concerned])
    return truth.video_of_image[image], truth.shot_of_image[image], position[image], concerned


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
