"""A CocoVID dataset of a few tiny frames, for end-to-end tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("square", "disc", "bar")


@dataclass(frozen=True)
class TinyVideos:
    """Where the dataset lies, and the options that make a config use it."""

    json_file: Path
    image_root: Path
    num_frames: int

    @property
    def options(self) -> list[str]:
        entry = ["tiny", str(self.json_file), str(self.image_root)]
        return [
            *("DATASETS.VID", str([entry])),
            *("DATASETS.TRAIN", "('tiny',)"),
            *("DATASETS.TEST", "('tiny',)"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", str(len(CLASSES))),
        ]


def make_tiny_videos(
    folder: Path, lengths: tuple[int, ...] = (5, 3, 1), size: tuple[int, int] = (64, 96)
) -> TinyVideos:
    """Write videos of one coloured shape each that moves to the right.

    Args:
        folder: gets ``frames/`` and ``tiny.json``.
        lengths: frames of each video.
        size: height and width in pixels.
    """
    height, width = size
    data: dict[str, list[dict[str, object]]] = {
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "videos": [],
        "images": [],
        "annotations": [],
    }
    rng = np.random.default_rng(0)
    for video_id, length in enumerate(lengths, start=1):
        data["videos"].append({"id": video_id, "name": f"v{video_id}"})
        category = (video_id - 1) % len(CLASSES)
        for frame in range(length):
            file_name = f"v{video_id}/{frame:06d}.jpg"
            picture = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
            x, y, w, h = 8 + 6 * frame, 16, (24, 24, 36)[category], (24, 24, 12)[category]
            colour = tuple(255 if channel == category else 20 for channel in range(3))
            cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), colour, -1)
            path = folder / "frames" / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
            image_id = len(data["images"]) + 1
            data["images"].append(
                {
                    "id": image_id,
                    "video_id": video_id,
                    "frame_id": frame,
                    "file_name": file_name,
                    "height": height,
                    "width": width,
                }
            )
            data["annotations"].append(
                {
                    "id": image_id,
                    "image_id": image_id,
                    "category_id": category + 1,
                    "instance_id": video_id,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    json_file = folder / "tiny.json"
    json_file.write_text(json.dumps(data))
    return TinyVideos(json_file, folder / "frames", sum(lengths))
