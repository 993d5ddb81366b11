"""Boxes, arrows and colours that the drawings of docs/ share."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

INK, GREY = "#24292f", "#57606a"
FRAME, DETECTOR, TEMPORAL = "#eef1f4", "#dbe9fb", "#d7f0dc"
BRANCH, LOSS, MEMORY = "#fde3c8", "#fbd5d5", "#e9defa"
Point = tuple[float, float]


class Box:
    """A labelled box; left, right, top and bottom are where arrows begin and end."""

    def __init__(
        self, ax: Axes, center: Point, size: Point, text: str, colour: str, *, dashed: bool = False
    ) -> None:
        (self.x, self.y), (self.width, self.height) = center, size
        ax.add_patch(
            FancyBboxPatch(
                (self.x - self.width / 2, self.y - self.height / 2),
                self.width,
                self.height,
                boxstyle="round,pad=0,rounding_size=0.9",
                facecolor=colour,
                edgecolor=INK,
                linewidth=1.1,
                linestyle=(0, (4, 2)) if dashed else "-",
            )
        )
        title, _, detail = text.partition("\n")
        lines = detail.count("\n") + 1 if detail else 0
        shift = 1.0 * lines
        ax.text(self.x, self.y + shift, title, ha="center", va="center", fontsize=12,
                color=INK, weight="bold")  # fmt: skip
        if detail:
            ax.text(self.x, self.y + shift - 1.1, detail, ha="center", va="top", fontsize=10.2,
                    color=INK, linespacing=1.25)  # fmt: skip

    @property
    def left(self) -> Point:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> Point:
        return self.x, self.y - self.height / 2


def arrow(ax: Axes, *points: Point, dashed: bool = False) -> None:
    """A line through the points, with a head at the last."""
    style = (0, (4, 2)) if dashed else "-"
    xs, ys = zip(*points, strict=True)
    ax.plot(xs[:-1], ys[:-1], color=INK, linewidth=1.2, linestyle=style, solid_capstyle="round")
    ax.annotate(
        "",
        xy=points[-1],
        xytext=points[-2],
        arrowprops={
            "arrowstyle": "-|>,head_width=0.25,head_length=0.5",
            "color": INK,
            "linewidth": 1.2,
            "linestyle": style,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )


def note(ax: Axes, x: float, y: float, text: str, ha: str = "center") -> None:
    ax.text(x, y, text, ha=ha, va="center", fontsize=10.2, color=GREY, linespacing=1.25)
