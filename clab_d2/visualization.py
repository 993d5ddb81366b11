"""Drawing what was detected, and what is true, on frames; and laying frames out on a sheet."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from clab_d2.errors import ConfigError
from clab_d2.optional import import_optional

if TYPE_CHECKING:
    from detectron2.structures import Instances

    from clab_d2.runtime.instances import ArrayInstances

__all__ = [
    "DetectionDrawer",
    "DrawStyle",
    "class_colour",
    "contact_sheet",
    "draw_boxes",
    "draw_detections",
    "enlarge",
    "readable_scale",
    "track_colour",
    "write_caption",
]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SHIFT = 3  # boxes are drawn to 1/8 of a pixel
Style = Literal["detection", "truth"]

_NUM_COLOURS = 96  # classes and tracks beyond come round again
_GREY = (150, 150, 150)
# Moving more labels off each other takes longer than detecting, and there is no room for them.
_MOST_SPREAD = 50


@cache
def class_colour(index: int) -> tuple[int, int, int]:
    """The colour (RGB, 0 to 255) of a class: always the same, unlike its neighbours'."""
    # Steps of the golden ratio around the hues never come back near the last ones.
    hue = (0.02 + index * 0.61803398875) % 1.0
    lightness = (0.55, 0.66, 0.45)[index // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def track_colour(number: int) -> tuple[int, int, int]:
    """The colour (RGB, 0 to 255) of a track: always the same; grey for none, -1."""
    return class_colour(number % _NUM_COLOURS) if number >= 0 else _GREY


def readable_scale(height: int, width: int, target: int = 480) -> int:
    """By what whole number to enlarge a frame so that labels on it are readable.

    Args:
        height, width: the frame's size.
        target: the short side that is enough; larger frames stay as they are.
    """
    return max(1, round(target / min(height, width)))


def enlarge(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize a frame by ``scale``, smoothly; 1 returns it as it is."""
    if scale == 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return cv2.resize(image, size, interpolation=way)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    class_names: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    track_ids: Sequence[int | None] | None = None,
    style: Style = "detection",
    scale: float = 1,
) -> np.ndarray:
    """Draw boxes with their labels on a copy of a frame.

    Detections have solid outlines and a filled label above the box; truth has dashed outlines and
    a plain label below, so that both can be drawn on one frame.

    Args:
        image: RGB, uint8 (H, W, 3).
        boxes: (N, 4), x1 y1 x2 y2 in pixels of ``image``.
        classes: N class numbers.
        class_names: names by class number; numbers are written where there is none.
        scores: N scores from 0 to 1, written as percent.
        track_ids: N track numbers, written as ``#7``; None for a box without one.
        style: see above.
        scale: enlarge the frame by this first; boxes stay in pixels of ``image``.

    Returns:
        RGB, uint8 (round(H * scale), round(W * scale), 3).
    """
    canvas = np.ascontiguousarray(enlarge(image, scale))
    if canvas is image or np.shares_memory(canvas, image):
        canvas = canvas.copy()
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale
    short_side = min(canvas.shape[:2])
    thickness = max(1, round(short_side / 240)) + (style == "truth")
    # Edges beyond the frame stay beyond it, but not by millions of pixels.
    margin = 2.0 * thickness + 4
    height, width = canvas.shape[:2]
    limit = np.array([width, height, width, height]) + margin
    boxes = np.clip(np.nan_to_num(boxes), -margin, limit)
    # Small boxes last, so that a large one does not hide them.
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for number in np.argsort(-areas, kind="stable"):
        colour = class_colour(int(classes[number]))
        outline = _dashed_rectangle if style == "truth" else _rectangle
        outline(canvas, boxes[number], colour, thickness)
    # Labels on top of all boxes, that of the best score uppermost.
    for number in range(len(boxes)) if scores is None else np.argsort(scores, kind="stable"):
        colour = class_colour(int(classes[number]))
        label = _label(int(classes[number]), class_names)
        if track_ids is not None and track_ids[number] is not None:
            label += f" #{track_ids[number]}"
        if scores is not None:
            label += f" {100 * float(scores[number]):.0f}%"
        _write_label(canvas, boxes[number], label, colour, style)
    return canvas


@dataclass(frozen=True)
class DrawStyle:
    """How detections are drawn.

    Attributes:
        colour_by: "class", or "track": each track has a colour of its own that it keeps, a box
            without a track is grey. Either way the same number always has the same colour.
        show: what stands on the labels, in this order; without any there are no labels.
        line_width: of boxes, in pixels of the drawing; None goes by its size.
        text_scale: of labels, 1 is about 22 pixels high; None goes by the drawing's size.
    """

    colour_by: Literal["class", "track"] = "class"
    show: tuple[Literal["class", "track", "score"], ...] = ("class", "track", "score")
    line_width: int | None = None
    text_scale: float | None = None

    def __post_init__(self) -> None:
        if self.colour_by not in ("class", "track"):
            raise ConfigError(f"colour_by is {self.colour_by!r}; choose class or track")
        unknown = [part for part in self.show if part not in ("class", "track", "score")]
        if unknown:
            raise ConfigError(f"show has {unknown[0]!r}; choose from class, track, score")


class DetectionDrawer:
    """Draws a model's detections with supervision's annotators; labels are moved off each other.

    Args:
        style: see :class:`DrawStyle`.

    Raises:
        ConfigError: supervision is not installed.
    """

    def __init__(self, style: DrawStyle | None = None) -> None:
        self._sv = import_optional("supervision", "video", "drawing detections")
        self.style = style or DrawStyle()
        colours = [*(class_colour(i) for i in range(_NUM_COLOURS)), _GREY]
        # The annotators write BGR into what here is RGB.
        self._colours = self._palette(colour[::-1] for colour in colours)
        self._inks = self._palette(_ink(colour) for colour in colours)

    def draw(
        self,
        image: np.ndarray,
        instances: Instances | ArrayInstances,
        class_names: Sequence[str] | None = None,
        score_threshold: float = 0.5,
        scale: float = 1,
    ) -> np.ndarray:
        """Draw the detections of at least ``score_threshold`` on a copy of a frame.

        Args:
            image: RGB, uint8 (H, W, 3).
            instances: ``pred_boxes`` in pixels of ``image``, ``scores``, ``pred_classes``, and
                maybe ``track_ids`` (-1: none).
            class_names: by class number; numbers are written where there is none.
            score_threshold: from 0 to 1.
            scale: enlarge the frame by this first.

        Returns:
            RGB, uint8 (round(H * scale), round(W * scale), 3).
        """
        canvas = np.ascontiguousarray(enlarge(image, scale))
        if canvas is image or np.shares_memory(canvas, image):
            canvas = canvas.copy()
        found = instances[instances.scores >= score_threshold].to("cpu")
        if not len(found):
            return canvas
        # Small boxes last, so that a large one does not hide them.
        found = found[np.argsort(-np.asarray(found.pred_boxes.area()), kind="stable")]
        short_side = min(canvas.shape[:2])
        line_width = self.style.line_width or max(1, round(short_side / 240))
        boxes = np.asarray(found.pred_boxes.tensor).astype(np.float64) * scale
        # What is not finite has no place; edges beyond the frame stay so, but not by millions.
        limit = np.array([*canvas.shape[1::-1]] * 2) + 2 * line_width + 4
        boxes = np.clip(np.nan_to_num(boxes), -2 * line_width - 4, limit)
        tracks = np.full(len(found), -1)
        if found.has("track_ids"):
            tracks = np.asarray(found.track_ids)
        classes = np.asarray(found.pred_classes)
        numbers = tracks if self.style.colour_by == "track" else classes
        lookup = np.where(numbers >= 0, numbers % _NUM_COLOURS, _NUM_COLOURS)
        detections = self._sv.Detections(xyxy=boxes, class_id=classes)
        for colour, width in (
            (self._sv.Color(0, 0, 0), line_width + 2),
            (self._colours, line_width),
        ):
            # A dark outline under the coloured one keeps it visible on any background.
            annotator = self._sv.BoxAnnotator(colour, width)
            annotator.annotate(canvas, detections, custom_color_lookup=lookup)
        labels = [
            self._label(*row, class_names)
            for row in zip(classes.tolist(), tracks.tolist(), found.scores.tolist(), strict=True)
        ]
        if any(labels):
            size = self.style.text_scale or float(np.clip(short_side / 900, 0.36, 1.2))
            self._sv.LabelAnnotator(
                self._colours,
                text_color=self._inks,
                text_scale=size,
                text_thickness=1 if size < 0.8 else 2,
                text_padding=max(2, round(8 * size)),
                smart_position=len(labels) <= _MOST_SPREAD,
            ).annotate(canvas, detections, labels, custom_color_lookup=lookup)
        return canvas

    def _label(
        self, class_index: int, track: int, score: float, names: Sequence[str] | None
    ) -> str:
        parts = {
            "class": _label(class_index, names),
            "track": f"#{track}" if track >= 0 else "",
            "score": f"{100 * score:.0f}%",
        }
        return " ".join(filter(None, (parts[name] for name in self.style.show)))

    def _palette(self, colours: Iterable[Sequence[int]]) -> Any:
        return self._sv.ColorPalette([self._sv.Color(*colour) for colour in colours])


@cache
def _drawer(style: DrawStyle) -> DetectionDrawer:
    return DetectionDrawer(style)


def draw_detections(
    image: np.ndarray,
    instances: Instances | ArrayInstances,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.5,
    scale: float = 1,
    style: DrawStyle | None = None,
) -> np.ndarray:
    """Draw a model's detections: see :meth:`DetectionDrawer.draw`."""
    return _drawer(style or DrawStyle()).draw(image, instances, class_names, score_threshold, scale)


def write_caption(image: np.ndarray, text: str) -> np.ndarray:
    """Return the frame with a line of text on a dark strip above it."""
    height = min(40, max(16, round(image.shape[0] * 0.06)))
    strip = np.full((height, image.shape[1], 3), 24, np.uint8)
    size = height / 32
    (width, _), _ = cv2.getTextSize(text, _FONT, size, 1)
    size *= min(1.0, (image.shape[1] - 6) / max(width, 1))
    cv2.putText(
        strip, text, (3, round(height * 0.72)), _FONT, size, (235, 235, 235), 1, cv2.LINE_AA
    )
    return np.concatenate([strip, image])


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int,
    cell_width: int = 320,
    captions: Sequence[str] | None = None,
    gap: int = 4,
) -> np.ndarray:
    """Lay frames out in rows, from left to right.

    Args:
        images: RGB, uint8, of any sizes; each is scaled to ``cell_width``.
        columns: frames a row.
        cell_width: width of a cell in pixels.
        captions: a line above each frame.
        gap: pixels between cells.

    Returns:
        RGB, uint8. Rows are as high as their highest frame.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    cells = [enlarge(image, cell_width / image.shape[1]) for image in images]
    if captions is not None:
        cells = [write_caption(c, text) for c, text in zip(cells, captions, strict=True)]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.shape[0] for cell in row) for row in rows]
    columns = max(len(row) for row in rows)
    sheet = np.full(
        (sum(heights) + gap * (len(rows) + 1), columns * (cell_width + gap) + gap, 3), 48, np.uint8
    )
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = gap + column * (cell_width + gap)
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        top += height + gap
    return sheet


def _label(class_index: int, names: Sequence[str] | None) -> str:
    if names is not None and 0 <= class_index < len(names):
        return str(names[class_index])
    return f"class {class_index}"


def _ink(ground: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out from a label's ground (RGB)."""
    bright = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2] > 140
    return (0, 0, 0) if bright else (255, 255, 255)


def _corner(x: float, y: float) -> tuple[int, int]:
    return round(float(x) * (1 << _SHIFT)), round(float(y) * (1 << _SHIFT))


def _rectangle(
    canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], thickness: int
) -> None:
    # A dark outline under the coloured one keeps it visible on any background.
    for stroke, width in (((0, 0, 0), thickness + 2), (colour, thickness)):
        cv2.rectangle(
            canvas, _corner(*box[:2]), _corner(*box[2:]), stroke, width, cv2.LINE_AA, _SHIFT
        )


def _dashed_rectangle(
    canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], thickness: int
) -> None:
    x1, y1, x2, y2 = box
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    dash = max(4.0, 5.0 * thickness)
    for stroke, width in (((255, 255, 255), thickness + 2), (colour, thickness)):
        for start, end in itertools.pairwise(corners):
            start, end = np.array(start), np.array(end)
            length = float(np.linalg.norm(end - start))
            # An odd number of dashes and gaps, so that every corner has a dash.
            parts = max(1, round(length / dash)) // 2 * 2 + 1
            for part in range(0, parts, 2):
                a = start + (end - start) * (part / parts)
                b = start + (end - start) * ((part + 1) / parts)
                cv2.line(canvas, _corner(*a), _corner(*b), stroke, width, cv2.LINE_AA, _SHIFT)


def _write_label(
    canvas: np.ndarray, box: np.ndarray, text: str, colour: tuple[int, int, int], style: Style
) -> None:
    height, width = canvas.shape[:2]
    size = float(np.clip(min(height, width) / 900, 0.36, 1.2))
    weight = 1 if size < 0.8 else 2
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, size, weight)
    pad = max(2, round(text_height * 0.25))
    box_width, box_height = text_width + 2 * pad, text_height + baseline + pad
    x = int(np.clip(round(box[0]), 0, max(0, width - box_width)))
    if style == "truth":
        y = round(box[3])  # below the box, or inside it at the frame's lower border
        y = y if y + box_height <= height else round(box[3]) - box_height
    else:
        y = round(box[1]) - box_height  # above the box, or inside it at the upper border
        y = y if y >= 0 else round(box[1])
    y = int(np.clip(y, 0, max(0, height - box_height)))
    if style == "truth":
        ground, ink = (255, 255, 255), tuple(round(0.5 * c) for c in colour)
    else:
        ground, ink = colour, _ink(colour)
    cv2.rectangle(canvas, (x, y), (x + box_width, y + box_height), ground, cv2.FILLED)
    at = (x + pad, y + box_height - baseline - pad // 2)
    cv2.putText(canvas, text, at, _FONT, size, ink, weight, cv2.LINE_AA)
