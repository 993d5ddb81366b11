from __future__ import annotations

import dataclasses
import json
import logging
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from clab_d2.errors import DataError
from clab_d2.evaluation import (
    Detections,
    GroundTruth,
    VIDEvaluator,
    compute_metrics,
    vid_evaluator,
)
from clab_d2.evaluation.detections import load_results
from clab_d2.postprocessing import PostProcessResults, SeqNMS

CATEGORY_IDS = (7, 3, 11)  # in the JSON's order, which is the model's


def make_dataset(folder: Path, seed: int = 0) -> Path:
    """Videos of 1 to 25 frames with moving objects; every seventh frame's truth is unknown."""
    rng = np.random.default_rng(seed)
    content: dict[str, list] = {
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS],
        "videos": [],
        "images": [],
        "annotations": [],
    }
    for video, length in enumerate((25, 1, 6, 12)):
        content["videos"].append({"id": video + 1, "name": f"video {video}"})
        start, pace = rng.uniform(0, 60, (2, 2)), rng.choice([0.3, 1.5, 5], (2, 1))
        for frame in range(length):
            image_id = len(content["images"]) + 1
            known = image_id % 7 != 0
            content["images"].append(
                {"id": image_id, "video_id": video + 1, "frame_id": frame, "width": 200,
                 "height": 150, "file_name": f"{video}/{frame}.jpg", "annotated": known}
            )  # fmt: skip
            for track in range(2 if known else 0):
                x, y = (start[track] + pace[track] * frame).tolist()
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": image_id,
                     "instance_id": track, "bbox": [x, y, 20, 25], "area": 500, "iscrowd": 0,
                     "category_id": CATEGORY_IDS[(video + track) % 3]}
                )  # fmt: skip
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def register(name: str, path: Path) -> str:
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(CATEGORY_IDS)},
    )
    return name


def register_vid(name: str, path: Path, **metadata: object) -> None:
    """As a video dataset: with the classes that are declared, if any are."""
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="vid", **metadata)


def detect(image_id: int, content: dict, seed: int = 0) -> dict:
    """A model of sorts: the truth, shaken, with doubles, false alarms and slips of the class."""
    rng = np.random.default_rng([seed, image_id])
    boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image_id]
    classes = [
        CATEGORY_IDS.index(a["category_id"])
        for a in content["annotations"]
        if a["image_id"] == image_id
    ]
    boxes = np.array([*boxes, *boxes, [5, 5, 30, 30]], dtype=np.float64)
    classes = np.array([*classes, *classes, 1])
    boxes += rng.normal(0, 2, boxes.shape)
    slip = rng.uniform(size=len(classes)) < 0.2
    instances = Instances((150, 200))
    instances.pred_boxes = Boxes(
        torch.tensor(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), dtype=torch.float32)
    )
    # Few different scores, so that the order among equal ones matters.
    instances.scores = torch.tensor(rng.integers(1, 10, len(boxes)) / 10, dtype=torch.float32)
    instances.pred_classes = torch.tensor(np.where(slip, (classes + 1) % 3, classes))
    return {"instances": instances}


def feed(evaluator: VIDEvaluator, image_ids, content: dict, unreadable=()) -> None:
    for image_id in image_ids:
        clip = {"image_id": image_id, "file_name": f"{image_id}.jpg"}
        output = detect(image_id, content)
        if image_id in unreadable:
            output["unreadable"] = True  # as the model says
        evaluator.process([clip], [output])


@pytest.fixture
def dataset(tmp_path):
    path = make_dataset(tmp_path)
    return register(f"evaluator_{tmp_path.name}", path), json.loads(path.read_text())


def run(dataset, output: Path | None, postprocess=None, **kwargs):
    name, content = dataset
    evaluator = VIDEvaluator(name, output, distributed=False, postprocess=postprocess)
    evaluator.reset()
    feed(evaluator, [image["id"] for image in content["images"]], content, **kwargs)
    return evaluator.evaluate()


def test_results_and_files(dataset, tmp_path):
    results = run(dataset, tmp_path / "out")
    assert list(results) == ["bbox", "vid"]
    assert list(results["bbox"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert list(results["vid"]) == ["AP50", "AP50-slow", "AP50-medium", "AP50-fast"]
    assert all(0 < value < 100 for value in results["vid"].values())
    assert math.isnan(results["bbox"]["APl"])  # no object is that large

    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["bbox"]["APl"] is None
    assert metrics["bbox"]["AP"] == results["bbox"]["AP"]
    assert {name: metrics["vid"][name] for name in results["vid"]} == results["vid"]
    assert list(metrics["vid"]["per-class"]) == ["class 7", "class 3", "class 11"]
    mean = np.mean(list(metrics["vid"]["per-class"].values()))
    assert mean == pytest.approx(results["vid"]["AP50"])

    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert set(predictions[0]) == {"image_id", "category_id", "bbox", "score"}
    assert {p["category_id"] for p in predictions} == set(CATEGORY_IDS)
    assert {p["image_id"] for p in predictions} == {i["id"] for i in dataset[1]["images"]}
    assert [p["image_id"] for p in predictions] == sorted(p["image_id"] for p in predictions)


def test_the_file_gives_the_same_metrics_to_the_last_digit(dataset, tmp_path):
    results = run(dataset, tmp_path)
    truth = GroundTruth.from_file(tmp_path / "truth.json")
    metrics = compute_metrics(truth, Detections.from_file(tmp_path / "predictions.json", truth))
    assert str(metrics.bbox) == str(dict(results["bbox"]))
    assert metrics.vid == results["vid"]


def test_post_processed_in_the_evaluation_and_from_its_file_alike(dataset, tmp_path):
    method = PostProcessResults(SeqNMS())
    plain = run(dataset, tmp_path / "plain")
    results = run(dataset, tmp_path / "processed", method)
    assert results != plain
    truth = GroundTruth.from_file(tmp_path / "truth.json")
    processed = method(load_results(tmp_path / "plain" / "predictions.json"), truth)
    written = load_results(tmp_path / "processed" / "predictions.json")
    for field in dataclasses.fields(written):
        assert (getattr(written, field.name) == getattr(processed, field.name)).all()
    metrics = compute_metrics(truth, Detections.from_results(processed, truth, "file"))
    assert metrics.vid == results["vid"]


def test_only_annotated_frames_need_be_evaluated(dataset, tmp_path, caplog):
    """The test loader gives no others: the figures are the same, and nothing is called missing."""
    name, content = dataset
    everything = run(dataset, None)
    evaluator = VIDEvaluator(name, tmp_path / "out", distributed=False)
    annotated = [image["id"] for image in content["images"] if image["annotated"]]
    assert 0 < len(annotated) < len(content["images"])
    feed(evaluator, annotated, content)
    with caplog.at_level(logging.WARNING):
        results = evaluator.evaluate()
    assert str(results) == str(everything)
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert not warnings
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {p["image_id"] for p in predictions} == set(annotated)

    evaluator.reset()
    feed(evaluator, annotated[:-2], content)
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate()
    assert f"2 of {len(annotated)} annotated frames" in caplog.text


def test_frames_of_unknown_truth_do_not_count(dataset, tmp_path):
    name, content = dataset
    whole = run(dataset, None)
    known = [image["id"] for image in content["images"] if image["annotated"]]
    evaluator = VIDEvaluator(name, None, distributed=False)
    feed(evaluator, known, content)
    assert str(evaluator.evaluate()) == str(whole)


def test_order_of_frames_and_frames_seen_twice_change_nothing(dataset):
    name, content = dataset
    whole = run(dataset, None)
    ids = [image["id"] for image in content["images"]]
    evaluator = VIDEvaluator(name, None, distributed=False)
    feed(evaluator, [*ids[::-1], *ids[:5]], content)
    assert str(evaluator.evaluate()) == str(whole)


def test_reset_forgets(dataset, caplog):
    name, content = dataset
    evaluator = VIDEvaluator(name, None, distributed=False)
    feed(evaluator, [1, 2, 3], content)
    evaluator.reset()
    with caplog.at_level(logging.WARNING):
        results = evaluator.evaluate()
    assert results["vid"]["AP50"] == results["bbox"]["AP"] == 0.0
    assert "There are no detections" in caplog.text
    assert "38 of 38 annotated frames" in caplog.text


def test_unreadable_frames_are_counted_and_reported(dataset, caplog):
    with caplog.at_level(logging.WARNING):
        results = run(dataset, None, unreadable=(2, 30))
    assert "2 of 44 frames" in caplog.text
    assert "2.jpg, 30.jpg" in caplog.text
    assert results["vid"]["AP50"] < run(dataset, None)["vid"]["AP50"]


def test_one_table_with_everything(dataset, caplog):
    with caplog.at_level(logging.INFO, logger="clab_d2"):
        run(dataset, None)
    tables = [r.getMessage() for r in caplog.records if "class 11" in r.getMessage()]
    assert len(tables) == 1
    for word in ("AP50-slow", "AP50-medium", "AP50-fast", "all classes", "class 7", "AP75"):
        assert word in tables[0]


def test_detections_that_are_not_finite_are_left_out(dataset, tmp_path, caplog):
    name, content = dataset
    evaluator = VIDEvaluator(name, tmp_path, distributed=False)
    output = detect(1, content)
    output["instances"].scores[0] = float("nan")
    evaluator.process([{"image_id": 1}], [output])
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate()
    assert "1 detections" in caplog.text and "diverged" in caplog.text
    assert "NaN" not in (tmp_path / "predictions.json").read_text()


def test_more_classes_than_the_dataset_has(dataset):
    """Told at the first such detection, not after hours."""
    name, content = dataset
    evaluator = VIDEvaluator(name, None, distributed=False)
    output = detect(1, content)
    output["instances"].pred_classes[0] = 3
    with pytest.raises(DataError, match=r"class 3, but .* has 3 classes; set MODEL\.ROI_HEADS"):
        evaluator.process([{"image_id": 1}], [output])


def perfect(dataset: str, content: dict, classes: list[str], output: Path | None) -> dict:
    """The figures of a model of ``classes`` that finds every object of theirs, and no other."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    evaluator = VIDEvaluator(dataset, output, distributed=False)
    for image in content["images"]:
        objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        objects = [a for a in objects if names[a["category_id"]] in classes]
        boxes = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
        # In a corner, where nothing is: something of the last class, in every frame.
        boxes = np.vstack([boxes, [180, 130, 20, 20]])
        index = [classes.index(names[a["category_id"]]) for a in objects] + [len(classes) - 1]
        instances = Instances((150, 200))
        corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        instances.pred_boxes = Boxes(torch.tensor(corners))
        instances.scores = torch.tensor([0.9] * len(objects) + [0.1])
        instances.pred_classes = torch.tensor(index)
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    "classes",
    [
        ["class 7", "class 3"],  # the JSON has a category more, with objects
        ["class 11", "class 3", "class 7"],  # another order
        ["class 11", "class 12", "class 3", "class 7", "class 13"],  # it lacks two
        ["class 3", "class 12"],
    ],
)
def test_classes_of_the_dataset_are_found_in_the_json_by_name(
    dataset, tmp_path, caplog, classes
):
    """A category that is no class is ignored; a class without a category is left out."""
    name, content = dataset
    register_vid(name, tmp_path / "truth.json", thing_classes=classes)
    results = perfect(name, content, classes, tmp_path / "out")
    assert results["vid"]["AP50"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    measured = [c for c in classes if c in {"class 7", "class 3", "class 11"}]
    assert list(metrics["vid"]["per-class"]) == measured
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {f"class {p['category_id']}" for p in predictions} == set(measured)
    missing, ignored = set(classes) - set(measured), {"class 7", "class 3", "class 11"}
    assert ("has no category for" in caplog.text) == bool(missing)
    assert all(each in caplog.text for each in missing)
    assert ("are ignored" in caplog.text) == bool(ignored - set(measured))
    # The file gives the same figures.
    truth = GroundTruth.from_file(tmp_path / "truth.json").only_classes(classes)
    file = Detections.from_file(tmp_path / "out" / "predictions.json", truth)
    assert str(compute_metrics(truth, file).vid) == str(results["vid"])


def test_a_video_datasets_classes_stand_in_the_json_where_nothing_declares_them(dataset, tmp_path):
    """Before it is loaded, a dataset registered without metadata has none."""
    name, content = dataset
    register_vid(name, tmp_path / "truth.json")
    results = perfect(name, content, ["class 7", "class 3", "class 11"], tmp_path)
    assert results["bbox"]["AP50"] == pytest.approx(100)


def test_a_dataset_whose_categories_are_all_others(dataset, tmp_path):
    name, _ = dataset
    register_vid(name, tmp_path / "truth.json", thing_classes=["bird"])
    with pytest.raises(DataError, match=r"none of its categories \(class 7.*classes .*\(bird\)"):
        VIDEvaluator(name, None, distributed=False)


def test_dataset_without_annotations():
    MetadataCatalog.pop("no_annotations", None)
    with pytest.raises(DataError, match="'no_annotations' has no annotation file"):
        VIDEvaluator("no_annotations", None)


def test_an_interrupted_evaluation_leaves_the_old_files(dataset, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run(dataset, output)
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    assert set(before) == {"predictions.json", "metrics.json"}

    calls = []

    def fail_at_the_third(entries):
        calls.append(entries)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return json.JSONEncoder().encode(entries)

    monkeypatch.setattr(vid_evaluator, "_ENTRIES_AT_A_TIME", 10)
    monkeypatch.setattr(vid_evaluator.json, "dumps", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, output)
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before


#: Splits whose detections are post-processed: also where a video's frames are on two processes.
PROCESSED = ("frames in turns, processed", "some frames twice, processed")


def _worker(name: str, truth: str, splits: dict[str, list[list[int]]], output: str) -> None:
    register(name, Path(truth))
    content = json.loads(Path(truth).read_text())
    for split, shares in splits.items():
        method = PostProcessResults(SeqNMS()) if split in PROCESSED else None
        evaluator = VIDEvaluator(name, Path(output) / split, postprocess=method)
        evaluator.reset()
        feed(evaluator, shares[comm.get_rank()], content, unreadable=(3,))
        results = evaluator.evaluate()
        path = Path(output) / f"{split}_{comm.get_rank()}.pkl"
        path.write_bytes(pickle.dumps(results))


def test_two_processes_equal_one_to_the_last_digit(dataset, tmp_path):
    name, content = dataset
    ids = [image["id"] for image in content["images"]]
    splits = {
        "one has nothing": [ids, []],
        "the main process has nothing": [[], ids],
        "other videos, very different": [ids[26:], ids[:26]],
        "some frames twice": [ids[:40], ids[32:]],
        "frames in turns, processed": [ids[::2], ids[1::2]],
        "some frames twice, processed": [ids[:40], ids[32:]],
    }
    output = tmp_path / "two"
    folders = {False: tmp_path / "single", True: tmp_path / "single_processed"}
    expected = {
        False: run(dataset, folders[False], unreadable=(3,)),
        True: run(dataset, folders[True], PostProcessResults(SeqNMS()), unreadable=(3,)),
    }
    output.mkdir()
    # All splits in one start of the processes, which is what takes the time.
    launch(
        _worker, 2, dist_url="auto", args=(name, str(tmp_path / "truth.json"), splits, str(output))
    )
    for split in splits:
        results = [pickle.loads((output / f"{split}_{rank}.pkl").read_bytes()) for rank in (0, 1)]
        single = folders[split in PROCESSED]
        assert str(results[0]) == str(expected[split in PROCESSED]), split
        assert results[1] == {}
        for file in ("predictions.json", "metrics.json"):
            assert (output / split / file).read_bytes() == (single / file).read_bytes(), split
