from __future__ import annotations

import json
import logging
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.errors import DataError
from clab_d2.evaluation import COCOResults, Detections, GroundTruth, compute_metrics, detections
from clab_d2.evaluation.detections import load_results


def detection(**changes) -> dict:
    return {"image_id": 10, "category_id": 5, "bbox": [0, 0, 9.5, 10], "score": 0.5, **changes}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        (b'[{"image_id": 1', "not valid JSON .* truncated"),
        (b"", "not valid JSON"),
        (b'{"images": []}', "not a COCO result list"),
        (b"[1, 2]", "entry 0 is not an object"),
        (json.dumps([detection(), {"image_id": 1}]).encode(), "entry 1 has no category_id"),
        (json.dumps([detection(bbox=[1, 2])]).encode(), "entry 0: bbox must be"),
        (json.dumps([detection(bbox=[1, 2, 3, "x"])]).encode(), "entry 0: bbox must be"),
        (json.dumps([detection(score="x")]).encode(), "entry 0: score must be a number"),
        (json.dumps([detection(image_id="a.jpg")]).encode(), "image_id must be an integer"),
        (json.dumps([detection(image_id=1.5)]).encode(), "image_id must be an integer"),
        (json.dumps([detection(image_id=2**63)]).encode(), "of at most 64 bits, not 92233720"),
        (json.dumps([detection(category_id=-(10**30))]).encode(), "category_id .* of at most 64"),
        (json.dumps([detection(image_id=True)]).encode(), "image_id must be an integer"),
        (json.dumps([detection(bbox=["1", "2", "3", "4"])]).encode(), "entry 0: bbox must be"),
        (json.dumps([detection(score="0.5")]).encode(), "entry 0: score must be a number"),
        (json.dumps([detection(score=True)]).encode(), "entry 0: score must be a number"),
        (json.dumps([detection(score=10**400)]).encode(), "entry 0: score must be .* 1000000"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'[{"bbox": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "nested too deep"),
        (b'[{"image_id": 1' + b"0" * 10_000 + b"}]", "not valid JSON"),
    ],
)
def test_malformed_predictions_are_one_clear_line(tmp_path, truth, text, message):
    path = tmp_path / "p.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(DataError, match=message) as error:
        Detections.from_file(path, truth)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_refused_at_once(tmp_path, truth):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for read in (lambda path: Detections.from_file(path, truth), GroundTruth.from_file):
        with pytest.raises(DataError, match=r"pipe.json: a named pipe, not a file"):
            read(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"folder.json: the folder holds no .json"):
        Detections.from_file(tmp_path / "folder.json", truth)
    with pytest.raises(DataError, match=r"folder.json: cannot be read \(Is a directory\)"):
        GroundTruth.from_file(tmp_path / "folder.json")


def test_large_whole_numbers_are_numbers(truth):
    found = from_records([detection(bbox=[0, 0, 2**70, 10])], truth)
    assert found.box.tolist() == [[0, 0, 2.0**70, 10]]


def test_entry_numbers_hold_across_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(detections, "_BYTES_AT_A_TIME", 200)
    path = tmp_path / "p.json"
    path.write_text(json.dumps([detection()] * 50 + [detection(score=None, bbox=None)]))
    with pytest.raises(DataError, match="entry 50: bbox"):
        load_results(path)


def from_records(entries: list[dict], truth: GroundTruth) -> Detections:
    return Detections.from_results(COCOResults.from_records(entries, "p.json"), truth, "p.json")


def test_detections_are_sorted_by_image_and_keep_their_order_within(truth):
    entries = [
        detection(image_id=i, score=s) for i, s in [(20, 0.1), (10, 0.2), (20, 0.3), (30, 0.9)]
    ]
    found = from_records(entries, truth)
    assert found.image.tolist() == [0, 1, 1]  # nothing in the frame of unknown truth
    assert found.score.tolist() == [0.2, 0.1, 0.3]


def test_unknown_images_and_categories_are_left_out_with_a_warning(truth, caplog):
    entries = [detection(), detection(image_id=7), detection(image_id=8), detection(category_id=9)]
    with caplog.at_level(logging.WARNING):
        assert len(from_records(entries, truth).score) == 1
    assert "2 of 4 detections are of images that truth.json does not have (ids 7, 8)" in caplog.text
    assert "1 of 4 detections are of categories" in caplog.text


def test_predictions_of_another_dataset_are_refused(truth):
    with pytest.raises(DataError, match="give the annotations they were made for"):
        from_records([detection(image_id=7)] * 3, truth)


def test_detections_that_are_not_finite_are_left_out(truth, caplog):
    bad = [detection(score=math.nan), detection(bbox=[0, 0, math.inf, 1])]
    with caplog.at_level(logging.WARNING):
        found = from_records([detection(), *bad], truth)
    assert len(found.score) == 1
    assert "2 detections have a score or box that is not finite" in caplog.text


def test_nothing_detected_and_nothing_to_detect(truth_json, truth, caplog):
    with caplog.at_level(logging.WARNING):
        metrics = compute_metrics(truth, from_records([], truth))
    assert metrics.vid["AP50"] == metrics.bbox["AP"] == 0.0
    assert "There are no detections" in caplog.text

    content = {**truth_json, "annotations": []}
    empty = GroundTruth.from_json(content, "truth.json")
    with caplog.at_level(logging.WARNING):
        metrics = compute_metrics(empty, from_records([detection()], empty))
    assert "nothing to measure" in caplog.text
    assert metrics.as_json()["vid"]["AP50"] is None
    assert metrics.as_json()["vid"]["per-class"] == {"dog": None, "cat": None}
    assert metrics.as_json()["bbox"]["AP"] is None

    for lists in ("images", "categories"):
        nothing = GroundTruth.from_json({**content, lists: []}, "truth.json")
        assert math.isnan(compute_metrics(nothing, from_records([], nothing)).vid["AP50"])


def test_a_crowd_counts_neither_way(truth):
    entries = [
        detection(bbox=[0, 0, 10, 10]),
        detection(image_id=20, bbox=[5, 0, 10, 10]),
        detection(image_id=20, category_id=2, bbox=[50, 0, 10, 10]),
        detection(image_id=40, category_id=2, bbox=[1, 2, 3, 4], score=0.9),
    ]
    metrics = compute_metrics(truth, from_records(entries, truth))
    assert metrics.vid["AP50"] == 100.0
    assert metrics.bbox["AP"] == pytest.approx(100.0)


entry = st.builds(
    lambda image, score, extra: detection(image_id=image, score=score, **extra),
    st.integers(-5, 2**40),
    st.floats(0, 1),
    st.sampled_from(
        [{}, {"note": "a },  { b"}, {"rle": {"size": [1, 2], "counts": "]}[{"}}, {"x": [{}, {}]}]
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(entry, max_size=30), st.integers(1, 400), st.sampled_from([None, 0, 2]))
def test_pieces_change_nothing(tmp_path_factory, entries, size, indent):
    path = tmp_path_factory.mktemp("pieces") / "p.json"
    path.write_text(json.dumps(entries, indent=indent))
    before, detections._BYTES_AT_A_TIME = detections._BYTES_AT_A_TIME, size
    try:
        columns = load_results(path)
    finally:
        detections._BYTES_AT_A_TIME = before
    assert columns.image_id.tolist() == [e["image_id"] for e in entries]
    assert columns.score.tolist() == [e["score"] for e in entries]
    assert columns.box.shape == (len(entries), 4)


@pytest.mark.parametrize("cut", range(1, 400, 23))
def test_a_file_cut_anywhere_is_refused(tmp_path, monkeypatch, cut):
    monkeypatch.setattr(detections, "_BYTES_AT_A_TIME", 100)
    path = tmp_path / "p.json"
    path.write_text(json.dumps([detection()] * 10)[:-cut])
    with pytest.raises(DataError, match="not valid JSON"):
        load_results(path)


def test_columns_of_no_parts():
    assert COCOResults.join([]).box.shape == (0, 4)
    assert np.shape(COCOResults.join([]).score) == (0,)
