"""What is drawn is where it should be, and leaves everything else alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.errors import ConfigError
from clab_d2.visualization import (
    DrawStyle,
    class_colour,
    contact_sheet,
    draw_boxes,
    draw_detections,
    enlarge,
    readable_scale,
    write_caption,
)

GREY = np.full((240, 320, 3), 120, np.uint8)


def changed(image: np.ndarray, before: np.ndarray = GREY) -> np.ndarray:
    return (image != before).any(axis=2)


def test_a_box_is_drawn_where_it_is() -> None:
    drawn = draw_boxes(GREY, np.array([[100.0, 80, 220, 200]]), [0])
    assert (GREY == 120).all()
    ring = changed(drawn)
    for y, x in ((140, 100), (140, 220), (200, 160)):
        assert np.abs(drawn[y, x].astype(int) - class_colour(0)).max() < 40
    assert not ring[110:195, 105:215].any()  # inside
    assert not ring[205:].any() and not ring[:, 240:].any() and not ring[:, :95].any()


def test_scale_enlarges_frame_and_boxes_alike() -> None:
    drawn = draw_boxes(GREY, np.array([[50.0, 60, 150, 160]]), [1], scale=2)
    assert drawn.shape == (480, 640, 3)
    assert np.abs(drawn[220, 100].astype(int) - class_colour(1)).max() < 30
    assert not changed(drawn, enlarge(GREY, 2))[130:310, 110:290].any()


def test_truth_is_dashed_and_detections_are_not() -> None:
    box = np.array([[40.0, 60, 280, 200]])
    for style, whole in (("detection", True), ("truth", False)):
        left = changed(draw_boxes(GREY, box, [0], style=style))[80:180, 40]
        assert left.any() and left.all() == whole


def test_the_label_tells_class_track_and_score(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "clab_d2.visualization._write_label", lambda canvas, box, text, *rest: written.append(text)
    )
    boxes = np.tile([[10.0, 10, 50, 50]], (3, 1))
    draw_boxes(GREY, boxes, [0, 1, 2], ["cat", "dog"], [0.9, 0.5, 0.714], [4, None, 12])
    # the best score last, so that it lies on top
    assert written == ["dog 50%", "class 2 #12 71%", "cat #4 90%"]


def found(*rows: tuple[tuple[float, float, float, float], int, float, int]) -> Instances:
    """Detections of (box, class, score, track)."""
    boxes, classes, scores, tracks = zip(*rows, strict=True)
    instances = Instances((240, 320), pred_boxes=Boxes(torch.tensor(boxes)))
    instances.pred_classes, instances.scores = torch.tensor(classes), torch.tensor(scores)
    instances.track_ids = torch.tensor(tracks)
    return instances


def test_colours_are_those_of_classes_or_of_tracks() -> None:
    instances = found(((20.0, 80, 120, 220), 2, 0.9, 5), ((180.0, 80, 300, 220), 2, 0.8, -1))
    by_class, by_track = (
        draw_detections(GREY, instances, style=DrawStyle(colour_by=by, show=()))[150]
        for by in ("class", "track")
    )
    assert by_class[20].tolist() == by_class[180].tolist() == list(class_colour(2))
    assert by_track[20].tolist() == list(class_colour(5))
    assert by_track[180].tolist() == [150, 150, 150]  # no track
    thick = draw_detections(GREY, instances, style=DrawStyle(show=(), line_width=9))
    assert changed(thick)[150].sum() > 2 * (by_class != 120).any(axis=1).sum()


def test_labels_show_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import supervision

    shown: list[str] = []
    monkeypatch.setattr(
        supervision.LabelAnnotator,
        "annotate",
        lambda self, scene, detections, labels, **more: shown.extend(labels),
    )
    instances = found(((20.0, 80, 120, 220), 1, 0.914, 5), ((180.0, 80, 200, 220), 7, 0.8, -1))
    for show in (("class", "track", "score"), ("track",), ()):
        draw_detections(GREY, instances, ["cat", "dog"], style=DrawStyle(show=show))
    assert shown == ["dog #5 91%", "class 7 80%", "#5", ""]
    with pytest.raises(ConfigError, match="choose from class, track, score"):
        DrawStyle(show=("name",))
    with pytest.raises(ConfigError, match="choose class or track"):
        DrawStyle(colour_by="score")


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    """Two boxes whose labels would lie on each other: all of both grounds can be seen."""
    one, other = (100.0, 100, 200, 200), (104.0, 103, 204, 203)
    style = DrawStyle(show=("class",), text_scale=0.6)
    names = ["aaaaaaaa", "bbbbbbbb"]

    def ground(instances: Instances, index: int) -> int:
        drawn = draw_detections(GREY, instances, names, style=style)
        return int((drawn == class_colour(index)).all(axis=2)[:97].sum())

    alone = ground(found((one, 0, 0.9, -1)), 0)
    assert alone > 500
    both = found((one, 0, 0.9, -1), (other, 1, 0.8, -1))
    assert ground(both, 0) > 0.9 * alone


def test_weak_detections_are_left_out() -> None:
    instances = Instances(
        (240, 320),
        pred_boxes=Boxes(torch.tensor([[10.0, 100, 60, 200], [200, 100, 300, 200]])),
        scores=torch.tensor([0.5, 0.49]),
        pred_classes=torch.tensor([0, 1]),
    )
    drawn = changed(draw_detections(GREY, instances, ["a", "b"], 0.5))
    assert drawn[:, :160].any() and not drawn[:, 160:].any()
    nothing = draw_detections(GREY, instances[:0])
    assert nothing is not GREY and not changed(nothing).any()


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    box=st.lists(st.floats(width=32), min_size=4, max_size=4),
)
def test_any_detection_on_any_frame_can_be_drawn(size: tuple[int, int], box: list[float]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    drawn = draw_detections(image, found((tuple(box), 7, 1.0, 3)), ["a long class name"] * 8)
    assert drawn.shape == image.shape and not image.any()


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    box=st.lists(st.floats(), min_size=4, max_size=4),
    style=st.sampled_from(["detection", "truth"]),
)
def test_any_box_on_any_frame_can_be_drawn(
    size: tuple[int, int], box: list[float], style: str
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    drawn = draw_boxes(image, np.array([box]), [7], ["a long class name"], [1.0], style=style)
    assert drawn.shape == image.shape and not image.any()


def test_classes_have_colours_of_their_own() -> None:
    colours = [np.array(class_colour(i), int) for i in range(30)]
    assert class_colour(3) == class_colour(3)
    assert min(np.abs(a - b).sum() for a, b in itertools.pairwise(colours)) > 120
    assert len({tuple(colour) for colour in colours}) == 30


@pytest.mark.parametrize(
    ("size", "scale"), [((128, 192), 4), ((480, 640), 1), ((1080, 1920), 1), ((1, 1), 480)]
)
def test_small_frames_are_enlarged(size: tuple[int, int], scale: int) -> None:
    assert readable_scale(*size) == scale


def test_contact_sheet_places_frames_in_rows() -> None:
    images = [np.full((40, 80, 3), value, np.uint8) for value in (60, 120, 180)]
    sheet = contact_sheet(images, columns=2, cell_width=80, gap=4)
    assert sheet.shape == (2 * 40 + 12, 2 * 84 + 4, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((20, 40), (20, 130), (70, 40))] == [60, 120, 180]
    assert int(sheet[70, 130, 0]) == 48
    halved = contact_sheet(images[:1], columns=3, cell_width=40, captions=["first"])
    assert halved.shape[1] == 48
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([], 2)


def test_a_caption_lies_above_the_frame() -> None:
    image = np.full((100, 200, 3), 70, np.uint8)
    captioned = write_caption(image, "a caption that is much too long for a frame so narrow " * 2)
    assert (captioned[-100:] == 70).all()
    assert captioned[:-100].max() > 100  # something is written
    assert captioned.shape[1] == 200
