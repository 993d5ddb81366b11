#!/usr/bin/env python
"""Detect in many videos: a result file each, and on with what is left when started again.

    tools/detect_videos.py --weights model_final.pth --input videos/ --output results/
    tools/detect_videos.py --weights W --input videos/ --output results/ --format cvat --draw
    tools/detect_videos.py ... --part 2/4       (the second of four processes or machines)
    tools/detect_videos.py ... --ray auto       (all machines of a Ray cluster)

--input is a folder: each video file in it, and each folder of pictures, at any depth, is a video.
clip.mp4 gives clip.mp4.json. A video whose result is there is passed over; one that can't be
read is told, and does not stop the others. Exit status: 0 all done, 1 some failed, 130 stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from clab_d2.engine.command_line import add_key_value_option, exit_status
from clab_d2.engine.plugins import add_import_option
from clab_d2.errors import ConfigError, DataError
from clab_d2.video import FORMATS, find_videos
from clab_d2.video.command_line import (
    add_appearance,
    add_runtime_option,
    add_score_threshold,
    add_shots,
    check_score_threshold,
    set_up,
)
from clab_d2.video.many_videos import DetectionJob
from clab_d2.video.ray_workers import detect_each_on_ray
from clab_d2.video.tracks import TRACKERS
from clab_d2.visualization import DetectionDrawer

EXIT_SOME_FAILED = 1
EXIT_STOPPED = 130
# Those of one file a video; the others make a folder, of which it does not show if it is whole.
FILE_FORMATS = [name for name, kind in FORMATS.items() if kind.suffix]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="W", help="the trained model")
    add_runtime_option(parser)
    parser.add_argument("--input", required=True, metavar="FOLDER", help="the videos, see above")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="gets the results")
    parser.add_argument(
        "--format", choices=FILE_FORMATS, default="coco", help="of results (default: %(default)s)"
    )
    parser.add_argument("--draw", action="store_true", help="also write drawn MP4s")
    add_score_threshold(parser, "CVAT")
    parser.add_argument("--online", action="store_true", help="use past frames only")
    add_shots(parser)
    parser.add_argument("--track", choices=sorted(TRACKERS), help="follow objects by this method")
    add_appearance(parser)
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="share out over a Ray cluster: auto, ray://..., or local"
    )
    parser.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N processes")
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def videos_of_part(videos: Sequence[Path], part: str) -> list[Path]:
    """Every N-th video, from the I-th on.

    Raises:
        ConfigError: ``part`` is not I/N with I from 1 to N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part is {part}; write I/N with I from 1 to N, such as 2/4")
    return list(videos[int(match[1]) - 1 :: int(match[2])])


def run(args: argparse.Namespace) -> int:
    check_score_threshold(args)
    root = Path(args.input)
    # Results may lie among the videos, and drawn ones are no videos to detect in.
    found = [video for video in find_videos(root) if not video.name.endswith(".drawn.mp4")]
    if not found:
        raise DataError(f"{root}: holds no video file and no folder of pictures; check the path")
    suffix = FORMATS[args.format].suffix
    videos = videos_of_part(found, args.part)
    outputs = {
        video: Path(args.output) / f"{os.path.relpath(video, root)}{suffix}" for video in videos
    }
    left = [video for video in videos if not outputs[video].exists()]
    print(f"{len(videos)} videos, {len(videos) - len(left)} of them done before")
    if not left:
        return 0
    if args.draw:
        DetectionDrawer()  # needs a package of an extra
    job = DetectionJob(
        weights=args.weights,
        options=args.opts,
        imports=args.imports,
        format=args.format,
        score_threshold=args.score_threshold,
        draw=args.draw,
        mode="online" if args.online else "offline",
        track=args.track or False,
        appearance=args.appearance,
        shots=args.shots or None,
        runtime=args.runtime,
    )
    todo = {video: outputs[video] for video in left}
    each = detect_each_on_ray(job, todo, args.ray) if args.ray else job.detect_each(todo)
    failed = 0
    try:
        with contextlib.closing(each):
            for _, failure in tqdm(each, total=len(todo), unit="video"):
                if failure is not None:
                    failed += 1
                    tqdm.write(f"failed: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the next video", file=sys.stderr)
        return EXIT_STOPPED
    print(f"{len(left) - failed} videos written to {args.output}, {failed} failed")
    return EXIT_SOME_FAILED if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    set_up()
    sys.exit(main())
