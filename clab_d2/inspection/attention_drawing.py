"""A picture of what one detection took from other frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clab_d2.evaluation.plots import new_figure
from clab_d2.inspection.attention import DetectionAttention, KeyFrameAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Proposals of less weight than this would be labelled 0.0.
_LEAST = 0.0005
_ATTENDED, _DETECTED = "#E69F00", "#ffffff"


def attention_figure(
    frame: KeyFrameAttention,
    detection: int,
    label: str,
    *,
    num_references: int = 5,
    num_proposals: int = 4,
    layer: int = -1,
) -> Figure:
    """The key frame with the detection; below, reference frames with what it took from each.

    One row shows the proposals that SELSA attends to, their line as strong as their weight; the
    other the positions that Temporal RoI Align takes, each in the colour that its bin has in the
    key frame, as large as its weight.

    Args:
        frame: the key frame.
        detection: its number in ``frame.instances``.
        label: what it is called.
        num_references: frames to show: those that most is taken from.
        num_proposals: of each of them, the most attended to.
        layer: the FC layer whose attention is shown.
    """
    attention = frame.of(detection)
    rows = bool(attention.proposals) + bool(attention.positions)
    shown = _most_used(attention, num_references, layer)
    height, width = frame.images[frame.key].shape[:2]
    cell = 2.3
    figure = new_figure(cell * (len(shown) + 1.5), (cell * height / width + 0.45) * max(rows, 1.4))
    grid = figure.add_gridspec(max(rows, 1), len(shown) + 1, width_ratios=[1.5] + [1] * len(shown))
    key_axes = figure.add_subplot(grid[:, 0])
    _picture(key_axes, frame.images[frame.key], f"key frame {frame.key}: {label}")
    x1, y1, x2, y2 = frame.instances.pred_boxes.tensor[detection].tolist()
    _box(key_axes, np.array([x1, y1, x2, y2]), _DETECTED, 2)
    row = 0
    if attention.proposals:
        name = f"SELSA, FC layer {range(len(attention.proposals))[layer] + 1}"
        for column, number in enumerate(shown):
            axes = figure.add_subplot(grid[row, column + 1])
            _proposals(axes, frame, attention, number, num_proposals, layer)
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
        row += 1
    if attention.positions:
        _bins(key_axes, attention)
        for column, number in enumerate(shown):
            axes = figure.add_subplot(grid[row, column + 1])
            _positions(axes, frame, attention, number)
            if column == 0:
                axes.set_ylabel("Temporal RoI Align", fontsize=8)
    return figure


def _most_used(attention: DetectionAttention, count: int, layer: int) -> list[int]:
    """The reference frames that most is taken from, in the order of the video."""
    if attention.proposals:
        shares = {n: p.weights.sum() for n, p in attention.proposals[layer].items()}
    else:
        shares = {n: p.weights.sum() for n, p in attention.positions.items()}
    return sorted(sorted(shares, key=lambda number: -shares[number])[:count])


def _picture(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="bilinear")
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8)


def _box(axes: Axes, box: np.ndarray, colour: str, width: float, alpha: float = 1.0) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    x1, y1, x2, y2 = box - 0.5
    rectangle = Rectangle(
        (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width, alpha=alpha
    )
    # A dark line under it shows on any ground.
    rectangle.set_path_effects([Stroke(linewidth=width + 1.5, foreground="#000000a0"), Normal()])
    axes.add_patch(rectangle)


def _reference_title(frame: KeyFrameAttention, number: int, share: float) -> str:
    name = "the key frame" if number == frame.key else f"frame {number}"
    times = frame.references[number]
    return f"{name}{f' (x{times})' if times > 1 else ''}: {100 * share:.1f}%"


def _proposals(
    axes: Axes,
    frame: KeyFrameAttention,
    attention: DetectionAttention,
    number: int,
    count: int,
    layer: int,
) -> None:
    attended = attention.proposals[layer][number]
    greatest = max(p.weights.max(initial=0) for p in attention.proposals[layer].values())
    title = _reference_title(frame, number, float(attended.weights.sum()))
    _picture(axes, frame.images[number], title)
    # The heaviest last, on top.
    for index in np.argsort(attended.weights)[-count:]:
        if attended.weights[index] < _LEAST:
            continue
        strength = float(attended.weights[index] / greatest) if greatest else 0.0
        _box(axes, attended.boxes[index], _ATTENDED, 0.6 + 2 * strength, 0.35 + 0.65 * strength)
        axes.text(
            *attended.boxes[index][:2], f"{100 * attended.weights[index]:.1f}",
            fontsize=6, color="black", va="bottom",
            bbox={"facecolor": _ATTENDED, "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            clip_on=True,
        )  # fmt: skip


def bin_colours(bins: int) -> np.ndarray:
    """(bins * bins, 3) in 0 to 1: red grows to the right, green downwards, blue against both."""
    along = np.linspace(0.1, 1, bins)
    red, green = np.meshgrid(along, along)
    return np.stack([red, green, 1.1 - (red + green) / 2], axis=-1).reshape(-1, 3)


def _bins(axes: Axes, attention: DetectionAttention) -> None:
    """The bins of the RoI, as a grid of dots in their colours."""
    x1, y1, x2, y2 = attention.roi
    steps = (np.arange(attention.bins) + 0.5) / attention.bins
    x, y = np.meshgrid(x1 + steps * (x2 - x1), y1 + steps * (y2 - y1))
    axes.scatter(
        x.ravel() - 0.5, y.ravel() - 0.5, s=9, c=bin_colours(attention.bins),
        edgecolors="black", linewidths=0.3,
    )  # fmt: skip


def _positions(
    axes: Axes, frame: KeyFrameAttention, attention: DetectionAttention, number: int
) -> None:
    taken = attention.positions[number]
    # Each bin's shares over all frames sum to 1; the mean over bins is the frame's part in the RoI.
    share = float(taken.weights.sum(axis=1).mean())
    _picture(axes, frame.images[number], _reference_title(frame, number, share))
    points, weights = taken.points.reshape(-1, 2) - 0.5, taken.weights.reshape(-1)
    greatest = max(p.weights.max() for p in attention.positions.values())
    colours = np.repeat(bin_colours(attention.bins), taken.points.shape[1], axis=0)
    axes.scatter(
        points[:, 0], points[:, 1], s=3 + 17 * weights / greatest, c=colours,
        edgecolors="black", linewidths=0.3,
    )  # fmt: skip
