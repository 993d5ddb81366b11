#!/usr/bin/env python
"""The whole job on a small scale: make data, train, evaluate, draw. `make demo` runs this.

    tools/make_demo.py          CLAB trained on Mini VID, and on a real street; both drawn
    tools/make_demo.py --clip   another real clip: trained from there, evaluated and drawn

Each step is one of the project's own commands, printed before it runs; a step whose result is
there already is not done again, and a training that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from clab_d2.engine.launch import exit_status, load_config
from clab_d2.errors import DataError
from clab_d2.evaluation import Detections, GroundTruth, compute_metrics
from clab_d2.sample_clips import find_clip
from clab_d2.video import VideoDetector, open_video, open_writer
from clab_d2.visualization import readable_scale, write_caption

ROOT = Path(__file__).resolve().parent.parent
MINI_VID = Path("datasets/mini_vid")
CONFIG = Path("configs/MiniVID/clab.yaml")
BIKES_CONFIG = Path("configs/OwnVideos/bikes.yaml")
CLIP_CONFIG = Path("configs/MiniVID/clip.yaml")
REAL_CLIPS = Path("datasets/real_clips")
NUM_DRAWN_VIDEOS = 8


def run(*command: str | Path) -> None:
    """Run one of the project's tools, its output passed on."""
    words = [str(word) for word in command]
    print(f"\n$ {' '.join(words)}", flush=True)
    if subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
        raise DataError(f"{words[0]} failed; its last lines above say why")


def train(config: Path, output: Path, *overrides: str) -> None:
    """Train and evaluate with a progress bar; all that train_net.py prints goes to a log file."""
    words = ["tools/train_net.py", "--config-file", str(config), "--resume"]
    words += ["OUTPUT_DIR", str(output), *overrides]
    log = ROOT / output / "train_net.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n$ {' '.join(words)}\n  (its output is in {output / log.name})", flush=True)
    total = load_config(str(ROOT / config), list(overrides)).SOLVER.MAX_ITER
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last = ""
    assert process.stdout is not None
    with log.open("a") as file, tqdm(total=total, desc="training", unit="it") as bar:
        for line in process.stdout:
            file.write(line)
            file.flush()
            last = line.strip() or last
            if found := re.search(r"iter: (\d+).*?total_loss: (\S+)", line):
                bar.set_postfix_str(f"loss {found[2]}", refresh=False)
                bar.update(int(found[1]) + 1 - bar.n)
            elif "Start inference" in line:
                bar.update(total - bar.n)
                bar.set_description("evaluating")
    if process.wait():
        raise DataError(f"training failed: {last}; see {output / log.name}")


def print_table(annotations: Path, predictions: Path) -> None:
    truth = GroundTruth.from_file(ROOT / annotations)
    metrics = compute_metrics(truth, Detections.from_file(ROOT / predictions, truth))
    print(f"\n{metrics.table()}", flush=True)


def draw_validation_videos(weights: Path, output: Path) -> None:
    """Detections in some validation videos, one after the other, as one MP4."""
    content = json.loads((ROOT / MINI_VID / "annotations/imagenet_vid_val.json").read_text())
    frames = {video["id"]: 0 for video in content["videos"]}
    for image in content["images"]:
        frames[image["video_id"]] += 1
    videos = [video for video in content["videos"] if frames[video["id"]] >= 14]
    detector = VideoDetector.from_file(ROOT / weights)
    chosen = videos[:: max(1, len(videos) // NUM_DRAWN_VIDEOS)][:NUM_DRAWN_VIDEOS]
    with open_writer(ROOT / output, fps=8) as writer:
        for video in tqdm(chosen, desc="drawing validation videos", unit="video"):
            with open_video(ROOT / MINI_VID / "Data" / "VID" / video["name"]) as source:
                for result in detector.detect(source):
                    drawn = result.draw(scale=readable_scale(*result.image.shape[:2]))
                    writer.write(write_caption(drawn, video["name"].rsplit("/", 1)[-1]))


def train_once(config: Path, output: Path, dataset: str, *overrides: str) -> Path:
    """Train and evaluate, unless that is done; the dataset's predictions."""
    results = output / "inference" / dataset / "predictions.json"
    if not (ROOT / results).exists():
        started = time.monotonic()
        train(config, output, *overrides)
        print(f"trained and evaluated in {(time.monotonic() - started) / 60:.1f} minutes")
    return results


def train_on_clip(config: Path, output: Path, root: Path, *overrides: str) -> Path:
    """Train on a real clip's annotated frames, and evaluate on its others.

    Args:
        config: of the clip; its annotations are in ``REAL_CLIPS``.
        output: folder of the training.
        root: what the annotations' file names are relative to: the video's folder, or the video
            itself, whose frames are read from where it lies.
        overrides: more KEY VALUE pairs.

    Returns:
        The trained model.
    """
    datasets = load_config(str(ROOT / config), []).DATASETS
    on_clip = [[name, annotations, str(root)] for name, annotations, _ in datasets.VID]
    (dataset,) = datasets.TEST
    results = train_once(config, output, dataset, "DATASETS.VID", str(on_clip), *overrides)
    print_table(REAL_CLIPS / f"{dataset}.json", results)
    return output / "model_final.pth"


def demo(output: Path) -> list[Path]:
    """Mini VID and a real street, from nothing to pictures; the files to look at."""
    run("datasets/make_mini_vid.py", "--output", MINI_VID)
    results = train_once(CONFIG, output, "mini_vid_val")
    print_table(MINI_VID / "annotations/imagenet_vid_val_every_3rd.json", results)
    weights, drawn = output / "model_final.pth", output / "validation_videos.mp4"
    draw_validation_videos(weights, drawn)

    clip = find_clip("bikes.mp4")
    street, street_drawn = output / "bikes", output / "bikes.mp4"
    street_weights = train_on_clip(BIKES_CONFIG, street, clip.parent)
    draw_clip(street_weights, clip, street_drawn)
    return [MINI_VID / "preview.png", drawn, street_drawn]


def draw_clip(weights: Path, clip: Path, output: Path) -> None:
    """Detections in all of a clip; after so few frames to learn from, only those that are sure."""
    run(
        "tools/demo.py", "--weights", weights, "--input", clip, "--output", output,
        "--score-threshold", "0.7",
    )  # fmt: skip


def clip_demo(output: Path) -> list[Path]:
    """Another real clip: trained on its annotated frames from the Mini VID weights."""
    mini_vid_weights = output / "model_final.pth"
    if not (ROOT / mini_vid_weights).exists():
        demo(output)
    clip = find_clip("bigbuckbunny.mp4")
    drawn = output / "clip" / "bigbuckbunny.mp4"
    start = ("MODEL.WEIGHTS", str(mini_vid_weights))
    weights = train_on_clip(CLIP_CONFIG, output / "clip", clip, *start)
    draw_clip(weights, clip, drawn)
    return [drawn]


def make(args: argparse.Namespace) -> None:
    files = clip_demo(args.output) if args.clip else demo(args.output)
    print("\nTo look at:")
    for path in files:
        print(f"  {path}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", action="store_true", help="the real clip instead of Mini VID")
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="folder (default: %(default)s)"
    )
    return exit_status(make, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
