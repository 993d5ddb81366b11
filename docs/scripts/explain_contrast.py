#!/usr/bin/env python
"""What the contrastive branch does to the backbone: three pictures, from trained runs.

    python docs/scripts/explain_contrast.py gradients --run "CLAB=output/clab/seed_*" \\
        --run "constant weight=output/constant/seed_*" --output gradients.png
    python docs/scripts/explain_contrast.py embeddings --mini-vid datasets/mini_vid \\
        --run "without the branch=output/selsa/seed_*" --run "CLAB=output/clab/seed_*" \\
        --output docs/study

Each --run is a name and a pattern of trainings' folders, one for each seed; what is shown is their
mean and its standard error.

``gradients`` shows how much of the gradient that reaches the backbone the contrastive loss sends,
at each checkpoint of a run (SOLVER.CHECKPOINT_PERIOD), and whether it points where detection's
does.

``embeddings`` draws two pictures of Mini VID's validation frames, each frame described by the mean
of the tapped map over all positions (what the branch's own projection begins with): how alike
frames of one video and of two videos are, and how often the most similar frame out of all videos'
clear frames is one of the same video, by what degrades the frame that is asked for.
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import sys
import tempfile
from collections import defaultdict
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
from clab_d2.engine.launch import exit_status
from clab_d2.engine.trainer import Trainer
from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.base import bottom_up_of
from clab_d2.study.statistics import Estimate, estimate

CONTRASTIVE = "loss_contrastive"
COLOURS = ("#8c959f", "#0969da", "#bf3989", "#1a7f37", "#bc4c00")
#: label -> trainings' folders, one a seed
Runs = dict[str, list[Path]]


def find_runs(texts: Sequence[str]) -> Runs:
    """The folders of each LABEL=PATTERN.

    Raises:
        ConfigError: nothing ends with such a folder, or there is no label.
    """
    runs: Runs = {}
    for text in texts:
        label, _, pattern = text.partition("=")
        folders = [Path(folder) for folder in sorted(glob.glob(pattern))]
        if not label or not folders:
            raise ConfigError(f"--run {text!r}: write LABEL=PATTERN, of folders that are there")
        runs[label] = folders
    return runs


def over_seeds(values: Sequence[float]) -> Estimate:
    return estimate(values, 0.95)


def shown(mean: Estimate, digits: int = 2) -> str:
    """Mean ± standard error; of one seed its figure."""
    error = "" if math.isnan(mean.standard_error) else f" ± {mean.standard_error:.{digits}f}"
    return f"{mean.mean:.{digits}f}{error}"


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
                float(torch.cosine_similarity(*each.values(), dim=0)) if weight else math.nan
                for each in found
            ]
            rows.append(
                {
                    "iteration": iteration,
                    "weight": weight,
                    "share, %": 100 * (norms[:, 1] / norms.sum(1)).mean(),
                    "cosine": float(np.mean(cosines)),
                }
            )
    return rows


def draw_gradients(rows: dict[str, list[list[dict[str, float]]]], output: Path) -> None:
    """A panel each for the share and the cosine over iterations.

    Args:
        rows: label -> of each seed, what :func:`gradient_shares` returns.
        output: the picture.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for number, (label, seeds) in enumerate(rows.items()):
        for axis, key in zip(panels, ("share, %", "cosine"), strict=True):
            by_iteration: dict[float, list[float]] = defaultdict(list)
            for row in (row for seed in seeds for row in seed):
                by_iteration[row["iteration"]].append(row[key])
            means = [over_seeds(values) for values in by_iteration.values()]
            errors = [np.nan_to_num(mean.standard_error) for mean in means]
            axis.errorbar(
                list(by_iteration), [mean.mean for mean in means], errors, label=label,
                color=COLOURS[1 + number % (len(COLOURS) - 1)], marker="o", capsize=3,
            )  # fmt: skip
    panels[0].set(
        xlabel="iteration", ylabel="contrastive share of the two\ngradients' norms, %",
        ylim=(0, None),
    )  # fmt: skip
    panels[1].axhline(0, color="black", linewidth=0.8)
    panels[1].set(xlabel="iteration", ylabel="cosine of the two gradients", ylim=(-0.5, 0.5))
    panels[0].legend(frameon=False)
    figure.savefig(output, dpi=110)


def gradients(runs: Runs, num_batches: int, output: Path) -> None:
    """The picture and its table."""
    rows = {
        label: [gradient_shares(folder, num_batches) for folder in folders]
        for label, folders in runs.items()
    }
    draw_gradients(rows, output)
    table = [
        {"run": label, "iteration": at[0]["iteration"], "weight": at[0]["weight"]}
        | {key: shown(over_seeds([row[key] for row in at])) for key in ("share, %", "cosine")}
        for label, seeds in rows.items()
        for at in zip(*seeds, strict=True)
    ]
    print(tabulate(table, headers="keys", tablefmt="github", disable_numparse=True))


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


def similarities(frames: Tensor, videos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of frames: of one video, and of two."""
    same = videos[:, None] == videos
    upper = np.triu(np.ones_like(same), 1)
    similarity = (frames @ frames.T).numpy()
    return similarity[same & upper], similarity[~same & upper]


def distance(within: np.ndarray, between: np.ndarray) -> float:
    """Between the means of two sets, in their pooled standard deviations."""
    return float((within.mean() - between.mean()) / np.sqrt((within.var() + between.var()) / 2))


def draw_similarity(
    frames: dict[str, list[Tensor]], videos: np.ndarray, output: Path
) -> list[dict[str, str]]:
    """Histograms of cosines within and between videos, of each run's first seed; figures of all."""
    figure, axes = plt.subplots(
        1, len(frames), figsize=(3.4 * len(frames), 3), layout="constrained", squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    rows = []
    for axis, (label, seeds) in zip(axes[0], frames.items(), strict=True):
        found = [similarities(seed, videos) for seed in seeds]
        within, between = found[0]
        bins = np.linspace(min(between.min(), 0.5), 1, 60)
        axis.hist(between, bins, density=True, color=COLOURS[0], alpha=0.7, label="two videos")
        axis.hist(within, bins, density=True, color=COLOURS[2], alpha=0.7, label="one video")
        # By logarithm: half the pairs of one video are neighbours and all but equal.
        axis.set(title=label, xlabel="cosine of two frames", yscale="log", yticks=[])
        axis.minorticks_off()
        rows.append(
            {
                "run": label,
                "within": shown(over_seeds([float(one.mean()) for one, _ in found]), 3),
                "between": shown(over_seeds([float(two.mean()) for _, two in found]), 3),
                "distance in standard deviations": shown(
                    over_seeds([distance(one, two) for one, two in found])
                ),
            }
        )
    axes[0, 0].legend(frameon=False, loc="upper left")
    figure.savefig(output, dpi=110)
    return rows


def draw_retrieval(found: dict[str, list[dict[str, float]]], output: Path) -> list[dict[str, str]]:
    """Bars by kind of degradation, with their standard errors; and the figures."""
    kinds = list(next(iter(found.values()))[0])
    figure, axis = plt.subplots(figsize=(9, 3.2), layout="constrained")
    width = 0.8 / len(found)
    rows = []
    for number, (label, seeds) in enumerate(found.items()):
        at = np.arange(len(kinds)) + (number - (len(found) - 1) / 2) * width
        means = [over_seeds([seed[kind] for seed in seeds]) for kind in kinds]
        axis.bar(
            at, [mean.mean for mean in means], width, label=label,
            yerr=[np.nan_to_num(mean.standard_error) for mean in means],
            color=COLOURS[number % len(COLOURS)], error_kw={"linewidth": 0.8},
        )  # fmt: skip
        figures = {kind: shown(mean, 1) for kind, mean in zip(kinds, means, strict=True)}
        rows.append({"run": label, **figures})
    axis.set_xticks(np.arange(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axis.set(ylabel="nearest clear frame\nis of the same video, %", ylim=(0, 100))
    axis.legend(frameon=False, ncols=len(found), loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(output, dpi=110)
    return rows


def embeddings(mini_vid: Path, runs: Runs, tap: str, stride: int, output: Path) -> None:
    """The pictures and tables of the weights that the runs start from, and of each run's."""
    files, videos, kinds = read_frames(mini_vid)
    files, videos, kinds = files[::stride], videos[::stride], kinds[::stride]

    def described(run: Path, weights: str) -> Tensor:
        cfg = load_config(str(run / "config.yaml"), [])
        model = Trainer.build_model(cfg)
        VIDCheckpointer(model, purpose="train").load(weights or cfg.MODEL.WEIGHTS)
        return describe_frames(cfg, model.eval(), files, tap)

    frames = {"before training": [described(next(iter(runs.values()))[0], "")]}
    for label, folders in runs.items():
        frames[label] = [described(run, str(run / "model_final.pth")) for run in folders]
    for rows in (
        draw_similarity(frames, videos, output / "contrast_similarity.png"),
        draw_retrieval(
            {
                label: [retrieval(seed, videos, kinds) for seed in seeds]
                for label, seeds in frames.items()
            },
            output / "contrast_retrieval.png",
        ),
    ):
        print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def explain(args: argparse.Namespace) -> None:
    runs = find_runs(args.run)
    if args.command == "gradients":
        gradients(runs, args.batches, args.output)
    else:
        embeddings(args.mini_vid, runs, args.tap, args.stride, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("gradients")
    one.add_argument("--batches", type=int, default=8, help="(default: %(default)s)")
    one.add_argument("--output", type=Path, required=True, help="picture")
    two = commands.add_parser("embeddings")
    two.add_argument("--mini-vid", type=Path, required=True, help="its folder")
    two.add_argument("--tap", default="res3", help="the backbone's map (default: %(default)s)")
    two.add_argument("--stride", type=int, default=1, help="every so many frames (1)")
    two.add_argument("--output", type=Path, required=True, help="folder")
    for command in (one, two):
        command.add_argument("--run", action="append", required=True, metavar="LABEL=PATTERN")
    return exit_status(explain, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
