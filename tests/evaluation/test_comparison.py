from __future__ import annotations

import math

import numpy as np
import pytest

from clab_d2.evaluation import COCOResults, Detections, GroundTruth
from clab_d2.evaluation.comparison import Comparison, Run, Spread, measure_run
from clab_d2.evaluation.metrics import Metrics
from clab_d2.evaluation.plots import draw_all


def truth(num_videos: int = 3, frames: int = 4) -> GroundTruth:
    """Videos of a still dog each; the first shows a cat too, the last nothing."""
    content: dict[str, list] = {
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "ox"}],
        "videos": [{"id": v, "name": f"video {v}"} for v in range(num_videos)],
        "images": [
            {"id": v * frames + f, "video_id": v, "frame_id": f}
            for v in range(num_videos)
            for f in range(frames)
        ],
        "annotations": [],
    }
    for image in content["images"]:
        for category in (1, 2) if image["video_id"] == 0 else (1,):
            if image["video_id"] < num_videos - 1:
                content["annotations"].append(
                    {"image_id": image["id"], "category_id": category, "instance_id": category,
                     "bbox": [50 * category, 0, 20, 20]}
                )  # fmt: skip
    return GroundTruth.from_json(content, "truth.json")


def run(truth: GroundTruth, entries: list[tuple[int, int, float]], label: str = "a") -> Run:
    """Of (image id, category id, score), each of a box at the category's place."""
    records = [
        {"image_id": i, "category_id": c, "bbox": [50 * c, 0, 20, 20], "score": s}
        for i, c, s in entries
    ]
    columns = COCOResults.from_records(records, "p.json")
    return measure_run(truth, Detections.from_results(columns, truth, "p.json"), label, "p.json")


def test_a_videos_figure_is_of_its_own_detections_and_classes():
    data = truth()
    # Video 0: every dog, no cat: (100 + 0) / 2. Video 1: a false alarm above one of four dogs.
    entries = [(f, 1, 0.9) for f in range(4)] + [(4, 2, 0.99), (4, 1, 0.5)]
    result = run(data, entries)
    assert result.video_ap[:2] == pytest.approx([50, 25])
    assert math.isnan(result.video_ap[2])
    worst = Comparison(data, [result]).worst_videos(5)
    assert [(name, frames) for name, frames, _ in worst] == [("video 1", 4), ("video 0", 4)]
    assert len(Comparison(data, [result]).worst_videos(1)) == 1


def test_a_videos_own_false_alarms_count():
    data = truth()
    entries = [(f, 1, 0.9) for f in range(4)] + [(f, 1, 0.95) for f in range(4)]
    entries += [(f, 2, 0.9) for f in range(4)]
    # Doubles of found objects above nothing else: precision 1/1, then a hit only after doubles.
    result = run(data, entries)
    assert result.video_ap[0] == pytest.approx(100)
    shifted = run(data, [(8, 1, 0.99), (0, 1, 0.9)])  # the false alarm is in another video
    assert shifted.video_ap[0] == pytest.approx((25 + 0) / 2)
    assert shifted.metrics.vid_per_class["AP50"]["dog"] == pytest.approx(100 / 8 / 2)


def test_curve_of_a_half_found_class():
    data = truth()
    curve = run(data, [(f, 1, 0.9) for f in range(4)] + [(f, 2, 0.9) for f in range(4)]).curves
    # Dogs: precision 1 up to recall 4/8; cats: up to 1; their mean.
    assert curve["AP50"][:51] == pytest.approx(np.full(51, 100))
    assert curve["AP50"][51:] == pytest.approx(np.full(50, 50))
    assert curve["AP50-slow"].tolist() == curve["AP50"].tolist()
    assert np.isnan(curve["AP50-fast"]).all()


def figures(value: float, label: str) -> Run:
    names = ("AP50", "AP50-slow", "AP50-medium", "AP50-fast")
    metrics = Metrics(
        bbox={"AP": value, "AP50": value, "AP75": value},
        vid=dict.fromkeys(names, value),
        vid_per_class={name: {"dog": value, "cat": value + 1, "ox": math.nan} for name in names},
    )
    curves = {name: np.full(101, value) for name in names}
    return Run(label, f"{label}.json", metrics, curves, np.array([value, 50.0, math.nan]))


def test_runs_of_one_label_are_given_with_mean_and_sample_deviation():
    comparison = Comparison(
        truth(), [figures(10, "a"), figures(40, "b"), figures(14, "a"), figures(12, "a")]
    )
    assert list(comparison.groups) == ["a", "b"]
    spread = comparison.spreads("a")["vid/AP50"]
    assert (spread.mean, spread.std, spread.count) == (12, 2, 3)
    assert str(spread) == "12.00 ± 2.00"
    assert str(comparison.spreads("b")["vid/AP50"]) == "40.00"
    assert comparison.class_spreads("a")["cat"].mean == 13
    table = comparison.overall_table()
    assert "12.00 ± 2.00" in table and "40.00" in table and "standard deviation" in table
    assert "+28.00" in comparison.class_table()
    assert comparison.worst_table(3).index("video 0") < comparison.worst_table(3).index("video 1")


def test_json_of_a_comparison():
    result = Comparison(truth(), [figures(10, "a"), figures(14, "a"), figures(3, "b")]).as_json(1)
    assert [r["label"] for r in result["runs"]] == ["a", "a", "b"]
    assert result["runs"][0]["vid"]["per-class"] == {"dog": 10, "cat": 11, "ox": None}
    assert result["groups"]["a"]["vid"]["AP50"]["mean"] == 12
    assert result["groups"]["b"]["bbox"]["AP75"] == {"mean": 3.0, "std": None, "count": 1}
    assert result["groups"]["b"]["per-class"]["ox"]["mean"] is None
    assert result["worst-videos"] == [
        {
            "video": "video 0",
            "frames": 4,
            "AP50": {
                "a": {"mean": 12.0, "std": pytest.approx(math.sqrt(8)), "count": 2},
                "b": {"mean": 3.0, "std": None, "count": 1},
            },
        }
    ]


def test_spread_of_nothing():
    spread = Spread.of([math.nan])
    assert spread.count == 0 and str(spread) == "-"


@pytest.mark.parametrize("labels", [["a"], ["a", *"abcdefgh"]])
def test_plots_are_drawn(tmp_path, labels):
    from matplotlib.image import imread

    comparison = Comparison(truth(), [figures(10 + i, label) for i, label in enumerate(labels)])
    files = draw_all(comparison, tmp_path / "plots", 10)
    assert [file.name for file in files] == [
        "precision_recall.png", "ap_by_motion.png", "ap_by_class.png", "worst_videos.png",
    ]  # fmt: skip
    for file in files:
        image = imread(file)
        assert min(image.shape[:2]) > 200
        assert image[..., :3].std() > 0.01  # something is drawn


def test_plots_where_there_is_nothing_to_find(tmp_path):
    data = truth(num_videos=1)
    assert len(data.image) == 0
    comparison = Comparison(data, [run(data, [])])
    assert len(draw_all(comparison, tmp_path, 10)) == 3
    assert comparison.worst_table(10) == ""
