from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clab_d2.errors import ConfigError, DataError
from clab_d2.inspection.training_history import (
    Series,
    choose_metrics,
    history_figure,
    read_history,
)


def write(folder: Path, records: list[dict[str, float]], end: str = "") -> Path:
    folder.mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.json").write_text(lines + end)
    return folder


def test_a_resumed_run_has_what_it_wrote_last(tmp_path: Path) -> None:
    run = write(
        tmp_path / "clab",
        [
            {"iteration": 19, "total_loss": 3.0, "contrastive/weight": 0.1},
            {"iteration": 39, "total_loss": 2.0, "contrastive/weight": 0.0},
            {"iteration": 19, "total_loss": 2.5},
            {"iteration": 40, "vid/AP50": 60.0, "bbox/APl": float("nan")},
        ],
        end='{"iteration": 59, "tot',
    )
    history = read_history(run)
    assert history.label == "clab"
    np.testing.assert_array_equal(history.series["total_loss"].iterations, [19, 39])
    np.testing.assert_array_equal(history.series["total_loss"].values, [2.5, 2.0])
    assert read_history(run / "metrics.json", "mine").label == "mine"
    assert choose_metrics([history]) == ["total_loss", "contrastive/weight", "vid/AP50"]
    assert choose_metrics([history], ["*/AP*"]) == ["bbox/APl", "vid/AP50"]
    with pytest.raises(ConfigError, match="no metric is called lr; there are bbox/APl, "):
        choose_metrics([history], ["lr"])


def test_what_is_no_history_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics.json: no such file"):
        read_history(tmp_path)
    (tmp_path / "metrics.json").write_text('{"bbox": {"AP": 3}}\n')
    with pytest.raises(DataError, match=r"line 1 has no iteration; name the metrics\.json"):
        read_history(tmp_path)
    (tmp_path / "metrics.json").write_text('nothing\n{"iteration": 1}\n')
    with pytest.raises(DataError, match="line 1 is no JSON"):
        read_history(tmp_path)


def test_smoothing_is_a_mean_of_what_is_around() -> None:
    series = Series(np.arange(5), np.array([1.0, 3.0, np.nan, 5.0, 9.0]))
    np.testing.assert_allclose(series.smoothed(3), [2, 2, 4, 7, 7])
    np.testing.assert_array_equal(series.smoothed(1), series.values)


def test_a_panel_a_metric_a_line_a_run(tmp_path: Path) -> None:
    records = [{"iteration": i, "total_loss": 1 / (i + 1), "lr": 0.1} for i in range(20)]
    histories = [
        read_history(write(tmp_path / "a", records)),
        read_history(write(tmp_path / "b", [*records, {"iteration": 20, "vid/AP50": 50.0}])),
    ]
    metrics = ["total_loss", "vid/AP50"]
    figure = history_figure(histories, metrics, smoothing=5)
    first, second = figure.axes
    assert [axes.get_title() for axes in (first, second)] == metrics
    assert len(first.lines) == 4  # values and means of two runs
    np.testing.assert_allclose(first.lines[0].get_ydata(), [1 / (i + 1) for i in range(20)])
    (only,) = second.lines
    assert only.get_xydata().tolist() == [[20, 50]] and only.get_marker() == "o"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
