"""The truth of every frame of a dataset, for references in training; shared by many processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from clab_d2.data.coco_vid import read_truth


class TruthTable:
    """(video id, frame id) -> annotations, for every frame of a dataset.

    Dataset dicts hold the truth of key frames alone, as ImageNet VID has one key frame in nineteen
    frames. Like :class:`clab_d2.data.video_table.VideoTable`, it is a handful of flat arrays, about
    40 bytes an object, that forked data-loading workers share.
    """

    def __init__(
        self,
        annotated: Mapping[int, Sequence[bool]],
        objects: Iterable[tuple[int, int, Sequence[float], int, int, bool]],
    ) -> None:
        """
        Args:
            annotated: for each video id, whether the truth of each of its frames is known.
            objects: video id, frame id, box (x, y, width, height), class, identity within the
                video (-1 if not known) and whether it is a crowd, of every object.
        """
        self._starts: dict[int, int] = {}
        total = 0
        for video_id, frames in annotated.items():
            self._starts[video_id] = total
            total += len(frames)
        self._annotated = np.concatenate([np.array(f, dtype=bool) for f in annotated.values()])
        rows = sorted(
            ((self._starts[video] + frame, *others) for video, frame, *others in objects),
            key=lambda row: row[0],
        )
        places, boxes, classes, tracks, crowds = zip(*rows, strict=True) if rows else ((),) * 5
        self._ends = np.searchsorted(places, np.arange(total), side="right")
        self._boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        self._classes = np.array(classes, dtype=np.int32)
        # Each array of its own type: no float64 holds every identity of 64 bits.
        self._tracks = np.array(tracks, dtype=np.int64)
        self._crowds = np.array(crowds, dtype=bool)

    def annotations(self, video_id: int, frame_id: int) -> list[dict[str, Any]] | None:
        """Annotations of a frame as in Detectron2's dataset dicts; None if not known."""
        row = self._starts[video_id] + frame_id
        if not self._annotated[row]:
            return None
        start = int(self._ends[row - 1]) if row else 0
        return [
            {
                "bbox": self._boxes[index].tolist(),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": int(self._classes[index]),
                "instance_id": int(self._tracks[index]),
                "iscrowd": int(self._crowds[index]),
            }
            for index in range(start, int(self._ends[row]))
        ]


def load_truth_table(dataset_name: str) -> TruthTable:
    """Read the truth of a registered video dataset; its JSON is read again."""
    metadata = MetadataCatalog.get(dataset_name)
    return TruthTable(*read_truth(metadata.json_file, dataset_name))
