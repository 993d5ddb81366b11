from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

from clab_d2.errors import ConfigError, DataError
from clab_d2.evaluation import COCOResults, Detections, GroundTruth
from clab_d2.evaluation.detections import load_results
from clab_d2.evaluation.track_metric import measure_tracks

CAT, DOG = 1, 2
BOX = [0, 0, 10, 10]
FAR = [100, 0, 10, 10]


def dataset(*objects: tuple[int, int, int, list[float]], frames: int = 4, **more) -> GroundTruth:
    """Videos 1 and 2; objects by video, frame, identity and box, which are cats."""
    annotations = [
        {"id": i, "image_id": 100 * v + f, "category_id": CAT, "instance_id": k, "bbox": box}
        for i, (v, f, k, box) in enumerate(objects)
    ]
    if more:
        annotations[-1] |= more
    content = {
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "videos": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
        "images": [
            {"id": 100 * v + f, "video_id": v, "frame_id": f} for v in (1, 2) for f in range(frames)
        ],
        "annotations": annotations,
    }
    return GroundTruth.from_json(content, "truth.json")


def measure(truth: GroundTruth, *found: tuple[int, int, int, list[float]], label: int = CAT):
    """Of tracked boxes by video, frame, track and box."""
    video, frame, track, box = (np.array(column) for column in zip(*found, strict=True))
    results = COCOResults(
        100 * video + frame,
        np.full(len(found), label),
        box.astype(float),
        np.full(len(found), 0.9),
        track,
    )
    return measure_tracks(truth, Detections.from_results(results, truth, "p.json"), "p.json")


STILL = [(1, f, 5, BOX) for f in range(4)]


def test_perfect_tracks() -> None:
    both = [*STILL, *((2, f, 5, FAR) for f in range(4))]
    figures = measure(dataset(*both), *((v, f, 77 + v, box) for v, f, _, box in both))
    perfect = dict.fromkeys(("HOTA", "DetA", "AssA", "MOTA", "IDF1"), 100.0)
    assert figures == pytest.approx({**perfect, "IDSW": 0})


def test_an_identity_switch_in_the_middle() -> None:
    figures = measure(dataset(*STILL), *((1, f, f // 2, BOX) for f in range(4)))
    # All is detected; each of two tracks has 2 of the object's 4 frames: AssA = 2 / 4.
    assert figures["DetA"] == pytest.approx(100)
    assert figures["AssA"] == pytest.approx(50)
    assert figures["HOTA"] == pytest.approx(100 * math.sqrt(0.5))
    assert figures["MOTA"] == pytest.approx(100 * (4 - 1) / 4)
    assert figures["IDF1"] == pytest.approx(100 * 2 * 2 / (4 + 4))
    assert figures["IDSW"] == 1


def test_false_and_missed_boxes_also_in_a_video_without_objects() -> None:
    figures = measure(dataset(*STILL), (1, 0, 0, BOX), (1, 1, 0, BOX), (2, 0, 0, BOX))
    assert figures["MOTA"] == pytest.approx(100 * (2 - 1) / 4)
    assert figures["DetA"] == pytest.approx(100 * 2 / (4 + 1))
    assert figures["IDF1"] == pytest.approx(100 * 2 * 2 / (4 + 3))


def test_mean_over_the_classes_that_have_objects() -> None:
    truth = dataset(*STILL, (2, 0, 1, FAR), category_id=DOG)
    figures = measure(truth, *((1, f, 3, BOX) for f in range(4)))
    assert figures["HOTA"] == pytest.approx(50)  # cats perfect, the dog missed
    assert figures["MOTA"] == pytest.approx(50)
    with_dogs_only = measure(dataset(*STILL), (1, 0, 3, BOX), label=DOG)
    assert with_dogs_only["HOTA"] == 0


@pytest.mark.parametrize("ignored", [{"iscrowd": 1}, {"instance_id": -1}])
def test_what_is_to_be_found_by_nobody_counts_neither_way(ignored) -> None:
    truth = dataset(*STILL, (1, 2, 6, FAR), **ignored)
    tracks = [(1, f, 3, BOX) for f in range(4)]
    assert measure(truth, *tracks)["MOTA"] == pytest.approx(100)
    assert measure(truth, *tracks, (1, 2, 4, FAR))["MOTA"] == pytest.approx(100)
    assert measure(truth, *tracks, (1, 3, 4, FAR))["MOTA"] == pytest.approx(75)


def test_what_cannot_be_measured_is_told(monkeypatch) -> None:
    truth = dataset(*STILL)
    with pytest.raises(DataError, match=r"p\.json: no detection has a track_id"):
        measure(truth, (1, 0, -1, BOX))
    with pytest.raises(DataError, match=r"p\.json: track 3 of one has two boxes in one frame"):
        measure(truth, (1, 0, 3, BOX), (1, 0, 3, FAR))
    monkeypatch.setitem(sys.modules, "trackeval", None)
    with pytest.raises(ConfigError, match=r"trackeval.*pip install \"clab_d2\[track\]\""):
        measure(truth, (1, 0, 3, BOX))


def test_tracks_in_a_result_list(tmp_path) -> None:
    entry = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    path = tmp_path / "p.json"
    tracks = [{"track_id": 7}, {}, {"track_id": -3}]
    path.write_text(json.dumps([{**entry, **track} for track in tracks]))
    assert load_results(path).track_id.tolist() == [7, -1, -1]
    path.write_text(json.dumps([{**entry, "track_id": "7"}]))
    with pytest.raises(DataError, match="entry 0: track_id must be an integer"):
        load_results(path)
