"""Make a ground truth and detections of the size of ImageNet VID's validation set, or smaller.

Not a test: ``docs/evaluation.md`` states what evaluating these files takes. At full size,
``python tests/evaluation/make_large.py FOLDER`` writes ``truth.json`` and ``predictions.json``
with 555 videos, 176,126 frames and 100 detections in each frame, 2 GB in all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

NUM_CLASSES = 30
SIZE = np.array([1280, 720])


def make(
    folder: Path, *, videos: int = 555, frames: int = 176_126, per_frame: int = 100, seed: int = 0
) -> tuple[Path, Path]:
    """Write both files; of each frame's detections a fifth lie near its objects."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    cuts = np.sort(rng.choice(np.arange(1, frames), videos - 1, replace=False))
    lengths = np.diff([0, *cuts, frames])
    content: dict[str, list] = {
        "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(NUM_CLASSES)],
        "videos": [{"id": v + 1, "name": f"video {v + 1}"} for v in range(videos)],
        "images": [],
        "annotations": [],
    }
    with open(folder / "predictions.json", "w") as file:
        file.write("[")
        for video, length in enumerate(lengths.tolist()):
            tracks = int(rng.choice([1, 1, 1, 2, 2, 4]))
            classes = np.full(tracks, rng.integers(NUM_CLASSES))
            size = 2 ** rng.uniform(4, 8.5, (tracks, 2))
            where = rng.uniform(0, 1, (tracks, 2)) * (SIZE - size)
            step = rng.choice([0.2, 2.0, 12.0]) * rng.normal(0, 1, (length, tracks, 2))
            corners = np.clip(where + np.cumsum(step, axis=0), 0, SIZE - size).round()
            for frame in range(length):
                image_id = len(content["images"]) + 1
                boxes = np.concatenate([corners[frame], size.round()], axis=1)
                content["images"].append(
                    {"id": image_id, "video_id": video + 1, "frame_id": frame, "width": 1280,
                     "height": 720, "file_name": f"{video}/{frame:06d}.JPEG"}
                )  # fmt: skip
                for track, box in enumerate(boxes.tolist()):
                    content["annotations"].append(
                        {"id": len(content["annotations"]) + 1, "image_id": image_id,
                         "video_id": video + 1, "instance_id": track, "bbox": box,
                         "area": box[2] * box[3], "iscrowd": 0,
                         "category_id": int(classes[track]) + 1}
                    )  # fmt: skip
                near = per_frame // 5
                source = rng.integers(0, tracks, near)
                shaken = boxes[source] + boxes[source][:, [2, 3, 2, 3]] * rng.normal(
                    0, 0.1, (near, 4)
                )
                anywhere = np.concatenate(
                    [rng.uniform(0, 1, (per_frame - near, 2)) * SIZE * 0.9,
                     2 ** rng.uniform(4, 8.5, (per_frame - near, 2))], axis=1
                )  # fmt: skip
                boxes = np.concatenate([shaken, anywhere]).round(3)
                labels = rng.integers(0, NUM_CLASSES, per_frame)
                labels[:near] = np.where(
                    rng.uniform(size=near) < 0.7, classes[source], labels[:near]
                )
                scores = rng.uniform(0, 1, per_frame) ** np.where(np.arange(per_frame) < near, 2, 9)
                order = np.argsort(-scores)
                entries = [
                    {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
                    for label, box, score in zip(
                        (labels[order] + 1).tolist(),
                        boxes[order].tolist(),
                        scores[order].astype(np.float32).tolist(),
                        strict=True,
                    )
                ]
                file.write((", " if image_id > 1 else "") + json.dumps(entries)[1:-1])
        file.write("]")
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json", folder / "predictions.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=555)
    parser.add_argument("--frames", type=int, default=176_126)
    parser.add_argument("--per-frame", type=int, default=100)
    arguments = vars(parser.parse_args())
    print(*make(arguments.pop("folder"), **arguments), sep="\n")
