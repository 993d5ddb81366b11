#!/usr/bin/env python
"""Draw the figures of docs/method.md.

    python docs/scripts/draw_method.py [--output docs]

What can be computed is: the references and the weight schedules come from the functions that
training and test call, the counts of multiply-adds from the shapes, and the search for most similar
positions is run on made-up maps. The same files come out each time.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from drawing import BRANCH, DETECTOR, FRAME, GREY, INK, LOSS, MEMORY, TEMPORAL, Box, arrow, note
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from clab_d2.data.reference_sampling import (
    AdaptiveReferences,
    CausalReferences,
    FixedStrideReferences,
    RandomReferences,
)
from clab_d2.modeling.contrastive.branch import contrastive_weight

DOCS = Path(__file__).resolve().parent.parent
ORANGE, GREEN, VIOLET = "#bc4c00", "#1a7f37", "#8250df"
DARKER_DETECTOR, DARKER_TEMPORAL = "#a9cbf5", "#9fd9ac"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose axes fill it, with ten units an inch, as Box expects."""
    figure = plt.figure(figsize=(width / 10, height / 10), dpi=100, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, width)
    ax.set_ylim(0, height)
    ax.axis("off")
    return figure, ax


def only_left_and_bottom(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=3, colors=GREY)


# ------------------------------------------------------------------------- reference frames


def draw_references() -> Figure:
    """Which frames of a video of 60 the key frame aggregates over, for each way of choosing."""
    num_frames = 60
    drawn = RandomReferences().frames(num_frames, 20, random.Random(2))
    spread = AdaptiveReferences().frames(num_frames, 20)[:-1]
    rows: list[tuple[str, int, list[int]]] = [
        ("training: one of the 9 before,\none of the 9 after, at random", 20, drawn),
        ("test, adaptive: 14 frames\nspread over the video", 20, spread),
        ("the same for every key frame", 38, spread),
        ("test, fixed: 7 before, 7 after,\nhere with stride 2", 41,
         FixedStrideReferences(stride=2).frames(num_frames, 41)),
        ("clamped at the video's ends", 4, FixedStrideReferences(stride=2).frames(num_frames, 4)),
        ("test, causal: the last 14,\nhere with stride 2", 41,
         CausalReferences(stride=2).frames(num_frames, 41)),
        ("clamped at the video's start", 4, CausalReferences(stride=2).frames(num_frames, 4)),
    ]  # fmt: skip
    figure, ax = canvas(160, 63)
    left, cell, top = 37.0, 2.0, 53.0
    tops = [53.0, 44.0, 39.0, 30.0, 25.0, 16.0, 11.0]
    for (text, key, references), y in zip(rows, tops, strict=True):
        ax.text(left - 2, y + 0.8, text, ha="right", va="center", fontsize=11, color=INK,
                linespacing=1.2)  # fmt: skip
        counts = Counter(references)
        if y == top:
            for low, high in ((key - 9, key), (key + 1, key + 10)):
                ax.add_patch(Rectangle((left + low * cell, y - 0.6), (high - low) * cell - 0.3, 2.9,
                                       facecolor=BRANCH, edgecolor="none"))  # fmt: skip
        for frame in range(num_frames):
            is_key, count = frame == key, counts[frame]
            colour = LOSS if is_key else TEMPORAL if count else FRAME
            used = is_key or count
            ax.add_patch(Rectangle((left + frame * cell, y), cell - 0.3, 1.7, facecolor=colour,
                                   edgecolor=INK if used else "#c6cdd5",
                                   linewidth=1.2 if used else 0.6))  # fmt: skip
            label = "k" if is_key else str(count) if count > 1 else ""
            ax.text(left + frame * cell + 0.85, y + 0.8, label, ha="center", va="center",
                    fontsize=9 if len(label) < 2 else 7, color=INK,
                    weight="bold")  # fmt: skip
    for frame in [*range(0, num_frames, 10), num_frames - 1]:
        ax.text(left + frame * cell + 0.85, 8.4, str(frame), ha="center", fontsize=10, color=GREY)
    note(ax, left + num_frames * cell / 2, 6.6, "frame of the video")
    legend = [(LOSS, "k: key frame"), (TEMPORAL, "reference (number: counts so often)"),
              (BRANCH, "drawn from, in training")]  # fmt: skip
    for x, (colour, text) in zip((left, left + 22, left + 66), legend, strict=True):
        ax.add_patch(Rectangle((x, 2.0), 1.7, 1.7, facecolor=colour, edgecolor=INK, linewidth=1))
        ax.text(x + 2.6, 2.8, text, va="center", fontsize=11, color=INK)
    ax.text(2, 59.5, "Reference frames", fontsize=15, weight="bold", color=INK, va="center")
    return figure


# ------------------------------------------------------------------------- SELSA


def draw_selsa() -> Figure:
    """One fully connected layer with its SELSA block."""
    figure, ax = canvas(160, 70)
    ax.text(2, 66, "One FC layer with its SELSA block", fontsize=15, weight="bold", color=INK,
            va="center")  # fmt: skip
    ax.add_patch(FancyBboxPatch((2, 2), 136, 31, boxstyle="round,pad=0,rounding_size=1.5",
                                facecolor="#f8f5fe", edgecolor="#c9b8ee",
                                linewidth=1.2))  # fmt: skip
    key = Box(ax, (14, 50), (20, 9), "x\nRoIs of the key frame", FRAME)
    reference = Box(ax, (14, 17), (20, 9), "r\nM RoIs, all references", FRAME)
    fc = Box(ax, (43, 50), (13, 8), "FC\nh", DETECTOR)
    reference_fc = Box(ax, (43, 17), (13, 8), "FC\ng", DETECTOR)
    query = Box(ax, (67, 50), (15, 8), "query\naffine", TEMPORAL)
    keys = Box(ax, (67, 27), (15, 7), "key\naffine", MEMORY)
    values = Box(ax, (67, 17), (15, 7), "value\naffine", MEMORY)
    relu = Box(ax, (67, 7), (15, 6), "ReLU", DETECTOR)
    attention = Box(ax, (97, 50), (29, 11),
                    "attention\nsoftmax over the M RoIs of all\nframes together, 16 heads",
                    TEMPORAL)  # fmt: skip
    output = Box(ax, (124, 50), (13, 8), "output\naffine", TEMPORAL)
    out_relu = Box(ax, (144, 50), (8, 8), "ReLU", DETECTOR)

    arrow(ax, key.right, fc.left)
    arrow(ax, fc.right, query.left)
    arrow(ax, query.right, attention.left)
    arrow(ax, attention.right, output.left)
    ax.add_patch(Circle((135.2, 50), 1.5, facecolor="white", edgecolor=INK, linewidth=1.1))
    ax.text(135.2, 49.9, "+", ha="center", va="center", fontsize=13, color=INK)
    arrow(ax, output.right, (133.7, 50))
    arrow(ax, (136.7, 50), out_relu.left)
    arrow(ax, fc.top, (fc.x, 60), (135.2, 60), (135.2, 51.5))
    arrow(ax, out_relu.right, (152.5, 50))
    ax.text(153.2, 50, "x'", va="center", fontsize=12, weight="bold", color=INK)

    arrow(ax, reference.right, reference_fc.left)
    ax.plot([54, 54], [7, 27], color=INK, linewidth=1.2)
    ax.plot([reference_fc.right[0], 54], [17, 17], color=INK, linewidth=1.2)
    for box in (keys, values, relu):
        arrow(ax, (54, box.y), box.left)
    arrow(ax, keys.right, (91, 27), (91, attention.bottom[1]))
    arrow(ax, values.right, (103, 17), (103, attention.bottom[1]))
    arrow(ax, relu.right, (126, 7))
    ax.text(126.8, 7, "r'", va="center", fontsize=12, weight="bold", color=INK)
    ax.plot([43, 43], [fc.bottom[1], reference_fc.top[1]], color=GREY, linewidth=1.1,
            linestyle=(0, (2, 2)))  # fmt: skip
    note(ax, 44.5, 37, "the same weights", ha="left")
    note(ax, 121, 26, "depends on the\nreference frame alone:\ncomputed once, kept")
    note(ax, 90, 38, "keys", ha="right")
    note(ax, 104, 38, "values", ha="left")
    note(ax, 88, 61.6, "h passes by the block")
    note(ax, 155, 45, "to the next\nFC layer")
    return figure


# ------------------------------------------------------------------------- Temporal RoI Align


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


@dataclass
class MadeUpVideo:
    """Feature maps (height, width, channels) of one object before a background.

    Attributes:
        maps: the key frame's first.
        corners: the object's upper left position (row, column) in each.
        size: the object's height and width.
    """

    maps: list[np.ndarray]
    corners: list[tuple[int, int]]
    size: tuple[int, int] = (5, 5)


def make_video() -> MadeUpVideo:
    rng = np.random.default_rng(4)
    height, width, channels = 11, 16, 24
    size = (5, 5)
    part = rng.normal(size=(*size, channels))
    common = rng.normal(size=channels)
    texture = common + part  # the object's parts, alike and yet told apart
    corners = [(3, 3), (2, 6), (4, 9), (4, 2)]
    # The key frame is blurred, the first reference clear; of the last only a trace is seen.
    noise, visible = [0.9, 0.25, 0.6, 0.5], [1.0, 1.0, 1.0, 0.25]
    maps = []
    for (row, column), amount, share in zip(corners, noise, visible, strict=True):
        background = rng.normal(size=(height, width, channels))
        region = background[row : row + size[0], column : column + size[1]]
        region *= 1 - share
        region += share * texture
        maps.append(0.35 * (background + amount * rng.normal(size=background.shape)))
    return MadeUpVideo(maps, corners, size)


def draw_temporal_roi_align() -> Figure:
    """The search in three reference maps for one RoI bin, and the weights of the frames."""
    video = make_video()
    own, references = video.maps[0], video.maps[1:]
    (row, column), (rows, columns) = video.corners[0], video.size
    at = row + 2, column + 2
    figure = plt.figure(figsize=(16, 5.2), dpi=100, facecolor="white")
    figure.text(0.0125, 0.94, "Temporal RoI Align of one RoI bin", fontsize=15, weight="bold",
                color=INK, va="center")  # fmt: skip

    ax = figure.add_axes((0.018, 0.36, 0.178, 0.40))
    ax.imshow(np.linalg.norm(own, axis=2), cmap="Greys", alpha=0.35)
    for i in range(rows):
        for j in range(columns):
            ax.add_patch(Rectangle((column + j - 0.5, row + i - 0.5), 1, 1, facecolor=DETECTOR,
                                   edgecolor="#6f9bd1", linewidth=0.8))  # fmt: skip
    ax.add_patch(Rectangle((at[1] - 0.5, at[0] - 0.5), 1, 1, facecolor=LOSS, edgecolor=INK,
                           linewidth=1.8))  # fmt: skip
    ax.text(at[1], at[0], "b", ha="center", va="center", fontsize=11, weight="bold", color=INK)
    ax.set_title("key frame's map\nRoIAlign: bins of a RoI", fontsize=12, color=INK)

    found, cosine_maps = [], []
    for reference in references:
        cosines = unit(reference) @ unit(own[at])
        best = np.argsort(-cosines, axis=None)[:2]
        weights = softmax(cosines.flat[best])
        found.append(weights @ reference.reshape(-1, reference.shape[2])[best])
        cosine_maps.append((cosines, best, weights))
    for number, (cosines, best, weights) in enumerate(cosine_maps, start=1):
        ax_map = figure.add_axes((0.228 + 0.19 * (number - 1), 0.36, 0.178, 0.40))
        image = ax_map.imshow(cosines, cmap="Greens", vmin=-0.2, vmax=1)
        lines = []
        for rank, (place, weight) in enumerate(zip(best, weights, strict=True), start=1):
            y, x = np.unravel_index(place, cosines.shape)
            ax_map.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=ORANGE,
                                       linewidth=2))  # fmt: skip
            light = cosines.flat[place] > 0.6
            ax_map.text(x, y, str(rank), ha="center", va="center", fontsize=10, weight="bold",
                        color="white" if light else INK)  # fmt: skip
            lines.append(f"cosine {cosines.flat[place]:.2f}, weight {weight:.2f}")
        ax_map.set_title(f"reference {number}\ncosines with b", fontsize=12, color=INK)
        ax_map.text(0.5, -0.07, f"1: {lines[0]}\n2: {lines[1]}", transform=ax_map.transAxes,
                    ha="center", va="top", fontsize=10.5, color=INK, linespacing=1.3)  # fmt: skip
        ax_map.text(0.5, -0.38, f"weighted sum: $M_{number}(b)$", transform=ax_map.transAxes,
                    ha="center", va="top", fontsize=12, color=INK)  # fmt: skip
        axes_off(ax_map)
    ax.text(0.5, -0.38, "own bin: $M_0(b)$", transform=ax.transAxes, ha="center", va="top",
            fontsize=12, color=INK)  # fmt: skip
    axes_off(ax)
    bar = figure.colorbar(image, cax=figure.add_axes((0.795, 0.38, 0.006, 0.36)))
    bar.ax.tick_params(labelsize=9, colors=GREY, length=2)
    bar.outline.set_visible(False)

    frames = np.stack([own[at], *found])
    # One head, and the features stand for their embeddings.
    weights = softmax(frames @ frames[0] / np.sqrt(frames.shape[1]))
    ax_bars = figure.add_axes((0.855, 0.38, 0.13, 0.36))
    names = ["own", "1", "2", "3"]
    ax_bars.bar(names, weights, color=[LOSS, TEMPORAL, TEMPORAL, TEMPORAL], edgecolor=INK)
    for x, weight in enumerate(weights):
        ax_bars.text(x, weight + 0.01, f"{weight:.2f}", ha="center", fontsize=10, color=INK)
    ax_bars.set_title("attention over frames\nweights $w_t(b)$", fontsize=12, color=INK)
    ax_bars.set_yticks([])
    ax_bars.set_ylim(0, weights.max() * 1.15)
    ax_bars.spines["left"].set_visible(False)
    only_left_and_bottom(ax_bars)
    ax_bars.tick_params(axis="x", labelsize=11, colors=INK)
    figure.text(0.92, 0.245, "$Y(b) = \\sum_t w_t(b) M_t(b)$", ha="center", va="top",
                fontsize=13, color=INK)  # fmt: skip
    figure.text(0.5, 0.055, "computed on made-up maps: the object moves; the key frame is blurred, "
                "reference 1 clear, reference 3 hides the object and counts little", ha="center",
                fontsize=11, color=GREY)  # fmt: skip
    return figure


def axes_off(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_edgecolor("#c6cdd5")


# ------------------------------------------------------------------------- loss weight


def draw_weight() -> Figure:
    """The contrastive loss's weight over a training of the paper's length."""
    figure = plt.figure(figsize=(11, 4.2), dpi=100, facecolor="white")
    ax = figure.add_axes((0.075, 0.15, 0.9, 0.72))
    iterations = np.arange(0, 48_770, 10)
    for schedule, colour, style in (
        ("constant", GREY, (0, (1, 1.5))),
        ("cosine", VIOLET, (0, (5, 2))),
        ("linear", ORANGE, "-"),
    ):
        weights = [
            contrastive_weight(int(i), start=0.005, steps=25_000, schedule=schedule)
            for i in iterations
        ]
        text = "linear (the paper's)" if schedule == "linear" else schedule
        ax.plot(iterations, weights, color=colour, linestyle=style, linewidth=2.2, label=text)
    for step in (13_934, 34_835):
        ax.axvline(step, color="#c6cdd5", linewidth=1.2, zorder=0)
        ax.text(step + 300, 0.00535, "learning rate x 0.1", fontsize=9.5, color=GREY, va="center")
    ax.set_xlim(0, 48_769)
    ax.set_ylim(0, 0.0056)
    ax.set_xticks([0, 13_934, 25_000, 34_835, 48_769],
                  ["0", "13,934", "25,000", "34,835", "48,769"])  # fmt: skip
    ax.set_yticks([0, 0.0025, 0.005])
    ax.set_xlabel("iteration", color=GREY)
    ax.set_title("Weight w(t) of the contrastive loss", loc="left", fontsize=13, weight="bold",
                 color=INK, pad=10)  # fmt: skip
    ax.legend(frameon=False, loc="center right", fontsize=10.5, labelcolor=INK)
    only_left_and_bottom(ax)
    return figure


# ------------------------------------------------------------------------- cost


@dataclass
class Cost:
    """Multiply-adds of one key frame at test, in units of 1e9.

    Attributes:
        part: what they are spent on.
        single: the single-frame detector.
        plain: the temporal detector, everything computed for each key frame.
        here: the temporal detector as it is implemented.
    """

    part: str
    single: float
    plain: float
    here: float


def multiply_adds() -> list[Cost]:
    """Count from the shapes: R-101, 600x1000, 14 references and the key frame.

    Left out is what is small beside these: RoIAlign, softmax, the two output layers.
    """
    # PyTorch's flop counter for ResNet-101 DC5 and the neck at 608x1008.
    backbone = 143.7
    positions, frames, rois, bins = 38 * 63, 15, 300, 300 * 49
    channels, fc, anchors = 512, 1024, 12
    rpn = positions * channels * (9 * channels + 5 * anchors)
    correlation = channels * positions * positions * frames
    interpolation = 16 * bins * positions * frames
    embedding = bins * 9 * channels * channels  # of one frame's RoIs
    embedded_map = positions * 9 * channels * channels
    # Weighted sums of embedded positions: the own embeddings, then the references' and products.
    sums = bins * channels * (9 * 16 + frames * (9 * 2 + 1))
    layers = 49 * channels * fc + 2 * fc * fc  # of one RoI
    attention = 3 * 2 * (rois * fc * fc + rois * rois * frames * fc)
    keys_values = 3 * 2 * rois * fc * fc  # of one frame
    parts = [
        Cost("RPN", rpn, (frames + 1) * rpn, rpn),
        Cost(
            "FC and SELSA",
            rois * layers,
            (frames + 1) * rois * layers + attention + frames * keys_values,
            2 * rois * layers + attention + keys_values,
        ),
        Cost("similarity", 0, bins * positions * channels * frames, correlation + interpolation),
        Cost("embedding, attention over frames", 0, (frames + 1) * embedding,
             embedded_map + sums),
    ]  # fmt: skip
    return [Cost("backbone and neck", backbone, backbone, backbone)] + [
        Cost(c.part, c.single / 1e9, c.plain / 1e9, c.here / 1e9) for c in parts
    ]


def draw_cost() -> Figure:
    """Multiply-adds of a key frame as stacked bars."""
    costs = multiply_adds()
    colours = [DETECTOR, DARKER_DETECTOR, MEMORY, TEMPORAL, DARKER_TEMPORAL]
    figure = plt.figure(figsize=(14, 3.9), dpi=100, facecolor="white")
    ax = figure.add_axes((0.135, 0.25, 0.84, 0.58))
    bars = (
        ("temporal, plain", [cost.plain for cost in costs]),
        ("temporal, here", [cost.here for cost in costs]),
        ("single frame", [cost.single for cost in costs]),
    )
    for y, (_, values) in enumerate(bars):
        left = 0.0
        for value, colour, cost in zip(values, colours, costs, strict=True):
            label = cost.part if y == 0 else None
            ax.barh(-y, value, left=left, color=colour, edgecolor=INK, linewidth=1, height=0.6,
                    label=label)  # fmt: skip
            if value > 25:
                ax.text(left + value / 2, -y, f"{value:.0f}", ha="center", va="center",
                        fontsize=10, color=INK)  # fmt: skip
            left += value
        ax.text(left + 8, -y, f"{left:,.0f}", va="center", fontsize=12, weight="bold", color=INK)
    ax.set_yticks([0, -1, -2], [name for name, _ in bars], fontsize=12, color=INK)
    ax.set_xlim(0, 1330)
    ax.set_xlabel("multiply-adds for each key frame, in units of 1e9", color=GREY)
    ax.set_title("R-101, 600x1000, 14 references and the key frame", loc="left", fontsize=13,
                 weight="bold", color=INK, pad=8)  # fmt: skip
    ax.legend(frameon=False, loc="lower right", fontsize=11, labelcolor=INK)
    only_left_and_bottom(ax)
    ax.tick_params(axis="y", length=0, colors=INK)
    return figure


FIGURES = {
    "method_references.png": draw_references,
    "method_selsa.png": draw_selsa,
    "method_temporal_roi_align.png": draw_temporal_roi_align,
    "method_weight.png": draw_weight,
    "method_cost.png": draw_cost,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DOCS, help="folder (default: docs)")
    args = parser.parse_args(argv)
    with plt.rc_context({"font.family": "DejaVu Sans"}):
        for name, draw in FIGURES.items():
            figure = draw()
            figure.savefig(args.output / name)
            plt.close(figure)


if __name__ == "__main__":
    main()
