#!/usr/bin/env python
"""Draw docs/architecture.png: training with the contrastive branch, inference without it.

python docs/scripts/draw_architecture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from drawing import BRANCH, DETECTOR, FRAME, GREY, INK, LOSS, MEMORY, TEMPORAL, Box, arrow, note
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

OUTPUT = Path(__file__).resolve().parent.parent / "architecture.png"


def frames(ax: Axes, x: float, y: float, text: str, count: int) -> Box:
    """A pile of pictures."""
    for back in range(count - 1, 0, -1):
        Box(ax, (x + 0.9 * back, y + 0.9 * back), (13, 7.5), "", FRAME)
    return Box(ax, (x, y), (13, 7.5), text, FRAME)


def panel(ax: Axes, bottom: float, height: float, title: str) -> None:
    ax.add_patch(
        FancyBboxPatch(
            (1, bottom),
            158,
            height,
            boxstyle="round,pad=0,rounding_size=1.5",
            facecolor="white",
            edgecolor="#d0d7de",
            linewidth=1.2,
        )
    )
    ax.text(3.5, bottom + height - 3.5, title, fontsize=15, weight="bold", color=INK, va="center")


def draw_training(ax: Axes) -> None:
    panel(ax, 50, 51, "Training")
    key = frames(ax, 12, 82, "key frame", 1)
    references = frames(ax, 12, 66.5, "references\n1 before, 1 after", 2)
    backbone = Box(
        ax,
        (35, 74),
        (17, 24),
        "backbone\nres2, res3, res4,\ndilated res5;\nshared by\nall frames",
        DETECTOR,
    )
    neck = Box(ax, (58, 74), (13, 9), "neck\nC5, 512 ch.", DETECTOR)
    rpn = Box(ax, (79, 83.5), (15, 8), "RPN\nproposals", DETECTOR)
    align = Box(
        ax,
        (102, 74),
        (22, 11),
        "Temporal RoI Align\nmost similar positions\nof the references",
        TEMPORAL,
    )
    selsa = Box(
        ax,
        (128, 74),
        (21, 11),
        "3 x (FC + SELSA)\nattention to the\nreferences' proposals",
        TEMPORAL,
    )
    losses = Box(ax, (150.5, 74), (13, 9), "losses\nclass, box", LOSS)
    rpn_loss = Box(ax, (102, 94), (13, 7), "losses\nRPN", LOSS)
    arrow(ax, key.right, (26.5, key.y))
    arrow(ax, (references.right[0] + 0.9, references.y), (26.5, references.y))
    arrow(ax, backbone.right, neck.left)
    arrow(ax, neck.right, align.left)
    arrow(ax, (68, 74), (68, rpn.y), rpn.left)
    arrow(ax, rpn.right, (align.x, rpn.y), align.top)
    arrow(ax, rpn.top, (rpn.x, rpn_loss.y), rpn_loss.left)
    arrow(ax, align.right, selsa.left)
    arrow(ax, selsa.right, losses.left)

    branch = Box(
        ax,
        (67, 57),
        (42, 8),
        "contrastive branch\n3x3 conv, ReLU, average pool, 2 linear layers",
        BRANCH,
        dashed=True,
    )
    nt_xent = Box(
        ax,
        (111, 57),
        (26, 9.5),
        "NT-Xent x w(t)\nframes of a clip attract,\nthose of other clips repel",
        LOSS,
        dashed=True,
    )
    arrow(ax, backbone.bottom, (backbone.x, branch.y), branch.left, dashed=True)
    arrow(ax, branch.right, nt_xent.left, dashed=True)
    note(ax, 33.8, 57, "C4 (res4)\nof all frames", ha="right")
    note(ax, 93, 58.6, "128-d")


def draw_schedule(figure: Figure) -> None:
    """The weight of the contrastive loss, in the free corner of the training's panel."""
    ax = figure.add_axes((0.822, 0.556, 0.15, 0.095))
    ax.plot([0, 25, 48.769], [0.005, 0, 0], color="#bc4c00", linewidth=2)
    ax.text(27, 0.0042, "w(t)", fontsize=11, color=INK, weight="bold")
    ax.set_xticks([0, 25, 48.769], ["0", "25,000", "48,769"], fontsize=9)
    ax.set_yticks([0, 0.005], ["0", "0.005"], fontsize=9)
    ax.set_xlabel("iteration", fontsize=9, labelpad=0, color=GREY)
    ax.tick_params(length=2, colors=GREY, pad=2)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def draw_inference(ax: Axes) -> None:
    panel(ax, 1, 46, "Inference: without the branch")
    key = frames(ax, 12, 29, "key frame", 1)
    references = frames(ax, 12, 10, "references\n14 of the video", 3)
    Box(ax, (35, 19.5), (17, 26), "backbone", DETECTOR)
    neck = Box(ax, (58, 29), (13, 8), "neck", DETECTOR)
    rpn = Box(ax, (79, 37.5), (15, 7), "RPN", DETECTOR)
    align = Box(ax, (102, 29), (22, 8), "Temporal RoI Align", TEMPORAL)
    selsa = Box(ax, (128, 29), (21, 8), "3 x (FC + SELSA)", TEMPORAL)
    result = Box(ax, (150.5, 29), (13, 8), "detections", FRAME)
    once = Box(
        ax,
        (65, 10),
        (27, 10),
        "neck, RPN, RoIAlign, FC\nthe same weights,\nonce for each reference",
        DETECTOR,
    )
    memory = Box(
        ax,
        (115, 10),
        (48, 10),
        "reference memory\nkept for the whole video: maps for Temporal\n"
        "RoI Align, keys and values for SELSA",
        MEMORY,
    )
    arrow(ax, key.right, (26.5, key.y))
    arrow(ax, (references.right[0] + 1.8, references.y), (26.5, references.y))
    arrow(ax, (43.5, 29), neck.left)
    arrow(ax, neck.right, align.left)
    arrow(ax, (68, 29), (68, rpn.y), rpn.left)
    arrow(ax, rpn.right, (align.x, rpn.y), align.top)
    arrow(ax, align.right, selsa.left)
    arrow(ax, selsa.right, result.left)
    arrow(ax, (43.5, 10), once.left)
    arrow(ax, once.right, memory.left)
    arrow(ax, (align.x, memory.top[1]), align.bottom)
    arrow(ax, (selsa.x, memory.top[1]), selsa.bottom)
    note(ax, align.x + 1.2, 20, "maps", ha="left")
    note(ax, selsa.x + 1.2, 20, "keys, values", ha="left")


def main() -> None:
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure = plt.figure(figsize=(16, 10.2), dpi=100, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, 160)
    ax.set_ylim(0, 102)
    ax.axis("off")
    draw_training(ax)
    draw_schedule(figure)
    draw_inference(ax)
    figure.savefig(OUTPUT)


if __name__ == "__main__":
    main()
