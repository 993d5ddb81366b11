#!/usr/bin/env python
"""What the contrastive branch does to the backbone: three pictures, from trained runs.

    python docs/scripts/explain_contrast.py gradients --run output/MiniVID/clab \\
        --output gradients.png
    python docs/scripts/explain_contrast.py embeddings --mini-vid datasets/mini_vid \\
        --run "without the branch=output/MiniVID/temporal_roi_align" \\
        --run "CLAB=output/MiniVID/clab" --output docs/study

``gradients`` shows how much of the gradient that reaches the backbone each loss sends, at each
checkpoint of a run (SOLVER.CHECKPOINT_PERIOD), and whether it points where detection's does.

``embeddings`` draws two pictures of Mini VID's validation frames, each frame described by the mean
of the tapped map over all positions (what the branch's own projection begins with): how alike
frames of one video and of two videos are, and how often the most similar frame out of all videos'
clear frames is one of the same video, by what degrades the frame that is asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor, nn

from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.engine.config_file import load_config
from clab_d2.engine.trainer import Trainer
from clab_d2.modeling.backbones.base import bottom_up_of

CONTRASTIVE = "loss_contrastive"
COLOURS = ("#8c959f", "#0969da", "#bf3989", "#1a7f37")


# ---------------------------------------------------------------- gradients


def gradients_of(model: nn.Module, clips: Sequence[dict]) -> dict[str, Tensor]:
    """The gradient at the backbone's P parameters, (P,), of detection and of the branch."""
    losses = model(list(clips))
    parameters = [p for p in bottom_up_of(model.backbone).parameters() if p.requires_grad]
    detection = sum(loss for name, loss in losses.items() if name != CONTRASTIVE)
    found = {}
    for name, loss in (("detection", detection), ("contrastive", losses[CONTRASTIVE])):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found[name] = torch.cat(
            [
                torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
                for parameter, gradient in zip(parameters, gradients, strict=True)
            ]
        )
    return found


def gradient_shares(run: Path, num_batches: int) -> list[dict[str, float]]:
    """For each checkpoint of a run, the mean over the same batches of the share and the cosine."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ["OUTPUT_DIR", scratch, "DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()"]
        trainer = Trainer(load_config(str(run / "config.yaml"), options))
        trainer.resume_or_load(resume=False)
        stream = iter(trainer.data_loader)
        batches = [next(stream) for _ in range(num_batches)]
        rows = []
        checkpoints: list[tuple[int, Path | None]] = [(0, None)]
        checkpoints += [
            (int(path.stem.removeprefix("model_")) + 1, path)
            for path in sorted(run.glob("model_[0-9]*.pth"))
        ]
        for iteration, path in checkpoints:
            if path is not None:
                trainer.model.load_state_dict(load_weights_file(str(path))["model"], strict=False)
            with EventStorage(iteration):
                found = [gradients_of(trainer.model, clips) for clips in batches]
                weight = trainer.model.contrastive_branch.weight_at(iteration)
            norms = np.array([[float(g.norm()) for g in each.values()] for each in found])
            cosines = [
                float(torch.cosine_similarity(*each.values(), dim=0)) if weight else float("nan")
                for each in found
            ]
            rows.append(
                {
                    "iteration": iteration,
                    "weight": weight,
                    "detection": norms[:, 0].mean(),
                    "contrastive": norms[:, 1].mean(),
                    "share": 100 * (norms[:, 1] / norms.sum(1)).mean(),
                    "cosine": float(np.mean(cosines)),
                }
            )
            print(tabulate([rows[-1]], floatfmt=".4f"), flush=True)
    return rows


def draw_gradients(rows: list[dict[str, float]], output: Path) -> None:
    iterations = [row["iteration"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(iterations, [r["detection"] for r in rows], "o-", color=COLOURS[1], label="detection")
    left.plot(
        iterations, [r["contrastive"] for r in rows], "o-", color=COLOURS[2],
        label="contrastive, weighted",
    )  # fmt: skip
    left.set(xlabel="iteration", ylabel="gradient norm at the backbone", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(iterations, [r["share"] for r in rows], "o-", color=COLOURS[2])
    right.set(xlabel="iteration", ylabel="contrastive share of the norms, %", ylim=(0, None))
    angle = right.twinx()
    angle.plot(iterations, [r["cosine"] for r in rows], "s--", color=COLOURS[0])
    angle.set(ylabel="cosine of the two gradients (dashed)", ylim=(-1, 1))
    figure.savefig(output, dpi=110)


# ---------------------------------------------------------------- embeddings


def describe_frames(cfg: CfgNode, model: nn.Module, files: Sequence[Path], tap: str) -> Tensor:
    """(N, C): of each frame the mean over the tapped map, of length 1."""
    rows = []
    with torch.no_grad():
        for file in files:
            image = cv2.imread(str(file))
            if cfg.INPUT.FORMAT == "RGB":
                image = image[..., ::-1]
            frame = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
            maps = bottom_up_of(model.backbone)(model.preprocess([frame]).tensor)
            rows.append(maps[tap].mean(dim=(0, 2, 3)))
    return nn.functional.normalize(torch.stack(rows), dim=1)


def read_frames(mini_vid: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Validation frames: files, numbers of their videos, and what degrades each ("clear": nothing).

    Of a frame whose objects are degraded in several ways the first object's way counts.
    """
    truth = json.loads((mini_vid / "annotations" / "imagenet_vid_val.json").read_text())
    names = {video["id"]: video["name"] for video in truth["videos"]}
    degradations = json.loads((mini_vid / "mini_vid.json").read_text())["degradations"]
    files, videos, kinds = [], [], []
    for image in truth["images"]:
        states = [track[image["frame_id"]] for track in degradations[names[image["video_id"]]]]
        files.append(mini_vid / "Data" / "VID" / image["file_name"])
        videos.append(image["video_id"])
        kinds.append(next((state for state in states if state), "clear"))
    return files, np.array(videos), np.array(kinds)


def retrieval(frames: Tensor, videos: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """For each kind of degradation, how often (%) the most similar clear frame is of the video.

    The frame itself and its two neighbours on either side don't count, nor do videos without
    another clear frame.
    """
    similarity = (frames @ frames.T).numpy()
    order = np.arange(len(videos))
    same = videos[:, None] == videos
    close = same & (np.abs(order[:, None] - order) <= 2)
    allowed = (kinds == "clear")[None, :] & ~close
    asked = (same & allowed).any(1)
    hit = videos[np.where(allowed, similarity, -np.inf).argmax(1)] == videos
    return {
        str(kind): 100 * hit[asked & (kinds == kind)].mean()
        for kind in sorted(set(kinds), key=lambda kind: (kind == "clear", kind))
    } | {"all": 100 * hit[asked].mean()}


def draw_similarity(
    frames: dict[str, Tensor], videos: np.ndarray, output: Path
) -> list[dict[str, object]]:
    """Histograms of cosines within and between videos; their figures."""
    figure, axes = plt.subplots(
        1, len(frames), figsize=(3.4 * len(frames), 3), layout="constrained", squeeze=False
    )
    same = videos[:, None] == videos
    upper = np.triu(np.ones_like(same), 1)
    rows: list[dict[str, object]] = []
    for axis, (label, rows_of) in zip(axes[0], frames.items(), strict=True):
        similarity = (rows_of @ rows_of.T).numpy()
        within, between = similarity[same & upper], similarity[~same & upper]
        bins = np.linspace(min(similarity.min(), 0.5), 1, 60)
        axis.hist(between, bins, density=True, color=COLOURS[0], alpha=0.7, label="two videos")
        axis.hist(within, bins, density=True, color=COLOURS[2], alpha=0.7, label="one video")
        axis.set(title=label, xlabel="cosine of two frames", yticks=[])
        pooled = np.sqrt((within.var() + between.var()) / 2)
        rows.append(
            {
                "run": label,
                "within": within.mean(),
                "between": between.mean(),
                "distance in standard deviations": (within.mean() - between.mean()) / pooled,
            }
        )
    axes[0, 0].legend(frameon=False, loc="upper left")
    figure.savefig(output, dpi=110)
    return rows


def draw_retrieval(found: dict[str, dict[str, float]], output: Path) -> None:
    kinds = list(next(iter(found.values())))
    figure, axis = plt.subplots(figsize=(9, 3.2), layout="constrained")
    width = 0.8 / len(found)
    for number, (label, values) in enumerate(found.items()):
        at = np.arange(len(kinds)) + (number - (len(found) - 1) / 2) * width
        colour = COLOURS[number % len(COLOURS)]
        axis.bar(at, [values[kind] for kind in kinds], width, label=label, color=colour)
    axis.set_xticks(np.arange(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axis.set(ylabel="nearest clear frame\nis of the same video, %", ylim=(0, 100))
    axis.legend(frameon=False, ncols=len(found), loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(output, dpi=110)


def embeddings(
    mini_vid: Path, runs: dict[str, Path], tap: str, stride: int, output: Path
) -> None:
    """The pictures and tables of the ImageNet weights and of each run's."""
    files, videos, kinds = read_frames(mini_vid)
    files, videos, kinds = files[::stride], videos[::stride], kinds[::stride]
    frames: dict[str, Tensor] = {}
    first = next(iter(runs.values()))
    for label, run, is_trained in [
        ("ImageNet", first, False), *((label, run, True) for label, run in runs.items())
    ]:  # fmt: skip
        cfg = load_config(str(run / "config.yaml"), [])
        model = Trainer.build_model(cfg)
        checkpointer = VIDCheckpointer(model, purpose="train")
        checkpointer.load(str(run / "model_final.pth") if is_trained else cfg.MODEL.WEIGHTS)
        frames[label] = describe_frames(cfg, model.eval(), files, tap)
    rows = draw_similarity(frames, videos, output / "contrast_similarity.png")
    print(tabulate(rows, headers="keys", floatfmt=".3f", tablefmt="github"))
    found = {label: retrieval(rows_of, videos, kinds) for label, rows_of in frames.items()}
    draw_retrieval(found, output / "contrast_retrieval.png")
    table = [{"run": label, **values} for label, values in found.items()]
    print(tabulate(table, headers="keys", floatfmt=".1f", tablefmt="github"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("gradients")
    one.add_argument("--run", type=Path, required=True, help="a training's folder, of CLAB")
    one.add_argument("--batches", type=int, default=8, help="(default: %(default)s)")
    one.add_argument("--output", type=Path, required=True, help="picture")
    two = commands.add_parser("embeddings")
    two.add_argument("--mini-vid", type=Path, required=True, help="its folder")
    two.add_argument("--run", action="append", required=True, metavar="LABEL=FOLDER")
    two.add_argument("--tap", default="res3", help="the backbone's map (default: %(default)s)")
    two.add_argument("--stride", type=int, default=1, help="every so many frames (1)")
    two.add_argument("--output", type=Path, required=True, help="folder")
    args = parser.parse_args(argv)
    if args.command == "gradients":
        draw_gradients(gradient_shares(args.run, args.batches), args.output)
    else:
        runs = {label: Path(run) for label, _, run in (text.partition("=") for text in args.run)}
        embeddings(args.mini_vid, runs, args.tap, args.stride, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
