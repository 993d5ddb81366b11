#!/usr/bin/env python
"""Draw docs/street.webp: what two detectors see in a scene of a real street.

    python docs/scripts/make_moving_picture.py --video bikes.mp4 --output docs/street.webp \\
        --models "single frame=single/model_final.pth" "CLAB=clab/model_final.pth"

The stretch shown is not chosen by what the detectors make of it: it is the whole scene in which
most objects are annotated, in datasets/real_clips/bikes_{train,val}.json. Every second frame of it
is a video for both detectors, so that references stay in the scene; every 10th of the clip's frames
they were trained on. What has at least --score-threshold, the demo's, is drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clab_d2.engine.launch import exit_status
from clab_d2.errors import ConfigError
from clab_d2.video import VideoDetector, open_video
from clab_d2.video.command_line import set_up
from clab_d2.visualization import contact_sheet, enlarge

CLIPS = Path(__file__).resolve().parents[2] / "datasets/real_clips"
ANNOTATIONS = (CLIPS / "bikes_train.json", CLIPS / "bikes_val.json")


def richest_scene(files: Sequence[Path]) -> range:
    """The frames of the scene with most annotated objects; of several the first.

    Args:
        files: CocoVID JSON whose images are frames of one video file, ``clip.mp4#12``, and whose
            videos are its scenes.
    """
    objects: Counter[int] = Counter()
    frames: dict[int, set[int]] = {}
    for file in files:
        content = json.loads(file.read_text())
        scene_of = {image["id"]: image["video_id"] for image in content["images"]}
        objects.update(scene_of[box["image_id"]] for box in content["annotations"])
        for image in content["images"]:
            number = int(image["file_name"].rpartition("#")[2])
            frames.setdefault(image["video_id"], set()).add(number)
    best = max(sorted(frames), key=lambda scene: objects[scene])
    return range(min(frames[best]), max(frames[best]) + 1)


def drawn_frames(
    detector: VideoDetector, frames: Sequence[np.ndarray], threshold: float, width: int
) -> Iterator[np.ndarray]:
    """Frames with what is detected in them, RGB, ``width`` pixels wide."""
    for result in detector.detect(frames):
        # Large first, so that lines and letters get thin.
        drawn = result.draw(threshold, scale=2)
        yield enlarge(drawn, width / drawn.shape[1])


def write_moving_picture(
    path: Path, columns: Mapping[str, Sequence[np.ndarray]], frames_per_second: float, quality: int
) -> None:
    """Write an animated WebP with the columns' pictures side by side, their names above."""
    names = list(columns)
    sheets = [
        Image.fromarray(contact_sheet(row, len(names), row[0].shape[1], names, gap=2))
        for row in zip(*columns.values(), strict=True)
    ]
    sheets[0].save(
        path, save_all=True, append_images=sheets[1:], duration=round(1000 / frames_per_second),
        loop=0, quality=quality, method=6,
    )  # fmt: skip


def named_files(models: Sequence[str]) -> dict[str, Path]:
    """``NAME=FILE`` each, by name.

    Raises:
        ConfigError: one is written otherwise.
    """
    for text in models:
        if not all(text.partition("=")):
            raise ConfigError(f'--models {text}: write NAME=FILE, such as "CLAB=model_final.pth"')
    return {text.partition("=")[0]: Path(text.partition("=")[2]) for text in models}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--score-threshold", type=float, default=0.7)
    parser.add_argument("--width", type=int, default=420, help="of one picture, in pixels")
    parser.add_argument("--every", type=int, default=2, help="show every so manieth frame")
    parser.add_argument("--quality", type=int, default=45, help="WebP's, 0 to 100")
    return parser


def run(args: argparse.Namespace) -> None:
    scene = richest_scene(ANNOTATIONS)
    shown = scene[:: args.every]
    models = named_files(args.models)
    with open_video(args.video) as source:
        frames = [source.read(number) for number in shown]
        frames_per_second = source.fps / args.every
    columns = {}
    for name, file in models.items():
        detector = VideoDetector.from_file(file)
        columns[name] = list(drawn_frames(detector, frames, args.score_threshold, args.width))
    write_moving_picture(args.output, columns, frames_per_second, args.quality)
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: frames {scene[0]} to {scene[-1]}, {len(shown)} shown, {size:.2f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    set_up()
    sys.exit(main())
