#!/usr/bin/env python
"""Make Mini VID: a small video dataset in ILSVRC2015's layout, drawn on the spot.

    python datasets/make_mini_vid.py --output datasets/mini_vid

Look at ``preview.png`` in the folder to see what it holds. Validation (``mini_vid_val``) measures
on every third frame, the middle one: neighbours are much alike, so that three times as many videos
make figures steadier at the same price. ``mini_vid_val_all_frames`` measures on all.
``mini_vid_train_8`` and ``mini_vid_train_32`` are the first videos of ``mini_vid_train``.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mini_vid_generator import summary, writer  # noqa: E402
from mini_vid_generator.conditions import with_conditions  # noqa: E402

from clab_d2.converters.coco_vid_parts import read_coco_vid  # noqa: E402
from clab_d2.converters.ilsvrc import convert  # noqa: E402
from clab_d2.converters.split_coco_vid import split_by_video  # noqa: E402
from clab_d2.converters.thin_coco_vid import thin  # noqa: E402
from clab_d2.errors import DataError  # noqa: E402
from clab_d2.io import write_json  # noqa: E402


def _progress(done: int, total: int) -> None:
    if not sys.stderr.isatty():
        if done * 4 // total > (done - 1) * 4 // total:
            print(f"{done}/{total} videos and stills", file=sys.stderr, flush=True)
    else:
        print(
            f"\r{done}/{total} videos and stills",
            end="" if done < total else "\n",
            file=sys.stderr,
            flush=True,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make Mini VID, a small video dataset.")
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default 0)")
    parser.add_argument("--jobs", type=int, default=None, help="processes (default: all cores)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed must not be negative")
    if options.jobs is not None and options.jobs < 1:
        parser.error("--jobs must be at least 1")
    # Ended from outside, tidy up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if writer.existing(options.output, options.seed) is not None:
            print(f"{options.output} already holds Mini VID of seed {options.seed}: nothing to do")
            return 0
        facts = writer.make(
            options.output, options.seed, options.jobs, convert=_convert, progress=_progress
        )
    except KeyboardInterrupt:
        print("make_mini_vid.py: interrupted, nothing written", file=sys.stderr)
        return 130
    except DataError as error:
        print(f"make_mini_vid.py: {error}", file=sys.stderr)
        return 2
    for split, numbers in facts["splits"].items():
        print(summary.line_of(split, numbers))
    print(f"Written: {options.output} (look at {options.output / 'preview.png'})")
    return 0


def _convert(root: Path, output: Path) -> None:
    """What a user of ImageNet VID does with ``convert_ilsvrc.py`` and ``thin_coco_vid.py``."""
    # One process: starting more takes longer than reading these few files.
    convert(root, output, jobs=1, progress=False)
    train = read_coco_vid(str(output / "imagenet_vid_train.json"))
    for count in (8, 32):
        rest = [video["name"] for video in train["videos"][count:]]
        if rest:
            few, _ = split_by_video(train, names=rest)
            write_json(output / f"imagenet_vid_train_{count}.json", few)
    whole = read_coco_vid(str(output / "imagenet_vid_val.json"))
    whole = with_conditions(whole, root)
    write_json(output / "imagenet_vid_val.json", whole)
    write_json(output / "imagenet_vid_val_every_3rd.json", thin(whole, every=3))


if __name__ == "__main__":
    sys.exit(main())
