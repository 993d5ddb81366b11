"""Sample detections as pictures, the same frames at every evaluation of a training."""

from __future__ import annotations

import heapq
import logging
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from clab_d2.data.frames import read_frame
from clab_d2.errors import ConfigError, DataError
from clab_d2.visualization import DetectionDrawer, draw_detections, enlarge, readable_scale

logger = logging.getLogger(__name__)

#: Takes a picture elsewhere, too: its name, itself as (H, W, 3) RGB of uint8, and the iteration.
PictureSink = Callable[[str, np.ndarray, int], None]

#: The longer side that a picture has at most, in pixels: TensorBoard's files hold them whole.
LONGEST_SIDE = 800
_SCORE_THRESHOLD = 0.5


def number_to_draw(wanted: int) -> int:
    """How many pictures can be drawn: none, with a line in the log, where what draws is missing.

    Asked before a training, which is not to end at its evaluation for want of a picture.
    """
    if not wanted:
        return 0
    try:
        DetectionDrawer()
    except ConfigError as error:
        logger.warning("No pictures in TensorBoard: %s; or set LOG.PICTURES 0", error)
        return 0
    return wanted


class DetectionPictures(DatasetEvaluator):
    """Draws some frames with what was detected in them, for TensorBoard.

    Frames are chosen by a hash of their id, so that each evaluation shows the same ones, from
    all videos. The main process draws of those that it evaluates. Measures nothing.

    Args:
        dataset_name: a registered dataset; its ``thing_classes`` name the classes.
        number: of frames.
        sinks: what gets the pictures beside TensorBoard.
    """

    def __init__(
        self, dataset_name: str, number: int, sinks: Sequence[PictureSink] = ()
    ) -> None:
        self._sinks = sinks
        self._dataset_name = dataset_name
        self._number = number
        # A heap: minus the hash, image id, file, detections. The largest hash is on top.
        self._chosen: list[tuple[int, int, str, Instances]] = []

    def reset(self) -> None:
        """Forget the frames chosen."""
        self._chosen = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the detections of frames that belong to the sample.

        Args:
            inputs: a dict a frame with ``image_id`` and ``file_name``.
            outputs: a dict a frame with ``instances``, boxes at the frame's own size.
        """
        for clip, output in zip(inputs, outputs, strict=True):
            image_id = int(clip["image_id"])
            rank = -zlib.crc32(str(image_id).encode())
            if len(self._chosen) == self._number and rank <= self._chosen[0][0]:
                continue
            item = (rank, image_id, str(clip["file_name"]), output["instances"].to("cpu"))
            if len(self._chosen) < self._number:
                heapq.heappush(self._chosen, item)
            else:
                heapq.heapreplace(self._chosen, item)

    def evaluate(self) -> dict[str, Any]:
        """Put the pictures into the present event storage; returns no figures."""
        if comm.is_main_process():
            storage = get_event_storage()
            names = MetadataCatalog.get(self._dataset_name).get("thing_classes")
            for _, image_id, file_name, instances in sorted(self._chosen, key=lambda one: one[1]):
                try:
                    frame = read_frame(file_name)
                except DataError as error:
                    logger.warning("No picture of this frame: %s", error)
                    continue
                picture = _fit(
                    draw_detections(
                        frame, instances, names, _SCORE_THRESHOLD, readable_scale(*frame.shape[:2])
                    )
                )
                tag = f"detections/{self._dataset_name}/{image_id}"
                storage.put_image(tag, np.ascontiguousarray(picture.transpose(2, 0, 1)))
                for send in self._sinks:
                    send(tag, picture, storage.iter)
        return {}


def _fit(picture: np.ndarray) -> np.ndarray:
    """A picture no larger than :data:`LONGEST_SIDE`."""
    return enlarge(picture, min(1.0, LONGEST_SIDE / max(picture.shape[:2])))
