"""Tables and plots of kept results."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tool_modules import import_tool

from clab_d2.errors import ConfigError, DataError
from clab_d2.study.plan import Study, load_study
from clab_d2.study.plots import draw_report
from clab_d2.study.report import make_report
from clab_d2.study.results import Result, merge_results, read_results, write_results

#: method, depth -> AP50 of seeds 1, 2, 3
FIGURES = {
    ("plain", "R_50"): (50.0, 54.0, 52.0),
    ("plain", "R_101"): (60.0, 61.0, 62.0),
    ("clab", "R_50"): (52.0, 55.0, 55.0),
    ("clab", "R_101"): (60.0, 61.0, None),
}


def result(method: str, depth: str, seed: int, value: float | None, **more: Any) -> Result:
    metrics = {
        "bbox": {"AP": 1.0},
        "vid": {"AP50": value, "per-class": {"cat": 10.0 * seed}},
    }
    run = {"seconds": 1800.0, "machine": "a computer"}
    return Result(
        {"method": method, "depth": depth}, seed, more.get("dataset", "val"), metrics, run
    )


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "grid.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "title": "A grid",
                "config": "c.yaml",
                "factors": {"method": ["plain", "clab"], "depth": ["R_50", "R_101"]},
                "seeds": [1, 2, 3],
                "metrics": ["vid/AP50", "vid/per-class/cat"],
                "baseline": {"method": "plain"},
            },
            sort_keys=False,
        )
    )
    return load_study(str(path))


@pytest.fixture
def results() -> list[Result]:
    return [
        result(*levels, seed, value)
        for levels, values in FIGURES.items()
        for seed, value in enumerate(values, start=1)
    ]


def test_figures_by_hand(study: Study, results: list[Result]) -> None:
    report = make_report(study, results, 0.95)
    rows = {tuple(row.condition.values()): row for row in report.figures[0].rows}
    assert list(rows) == list(FIGURES)
    clab = rows["clab", "R_50"]
    # 2, 1, 3: mean 2, standard deviation 1; t(0.975, 2) = 4.30265
    assert clab.baseline == {"method": "plain", "depth": "R_50"}
    assert clab.differences == {1: 2, 2: 1, 3: 3}
    assert clab.difference is not None
    assert clab.difference.mean == pytest.approx(2)
    assert clab.difference.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
    assert rows["plain", "R_50"].difference is None
    # a seed without the figure counts in neither
    assert rows["clab", "R_101"].mean.count == 2
    assert rows["clab", "R_101"].differences == {1: 0, 2: 0}
    # standard deviation of differences, pooled: (2 * 1 + 1 * 0) / 3
    assert report.figures[0].std == pytest.approx(math.sqrt(2 / 3))
    assert (report.hours, report.machines) == (6, ["a computer"])


def test_without_a_baseline_the_spread_of_figures_tells(tmp_path: Path) -> None:
    path = tmp_path / "noise.yaml"
    path.write_text("{config: c, seeds: [1, 2, 3], metrics: [vid/AP50]}")
    one = [Result({}, seed, "val", {"vid": {"AP50": v}}) for seed, v in ((1, 2), (2, 4), (3, 9))]
    report = make_report(load_study(str(path)), one, 0.95)
    assert report.figures[0].std == pytest.approx(math.sqrt(2 * 13))
    assert "| noise |" in report.markdown()
    assert "Differences" not in report.markdown()
    assert len(draw_report(report, tmp_path)) == 1


def test_the_tables_agree(study: Study, results: list[Result], tmp_path: Path) -> None:
    report = make_report(study, results, 0.9)
    markdown, as_json, as_csv = (path.read_text() for path in report.write(tmp_path))
    assert markdown.startswith("# A grid\n")
    assert "| clab     | R_50    | 3       |" in markdown and "52.00 ± 1.15" in markdown
    assert "+2.00 [+0.31, +3.69]" in markdown and "90% confidence interval" in markdown
    assert "12 runs on val; 6.0 hours of computing on a computer." in markdown
    lines = list(csv.DictReader(io.StringIO(as_csv)))
    rows = [row for figure in json.loads(as_json)["figures"] for row in figure["rows"]]
    assert len(lines) == len(rows) == 8
    for line, row in zip(lines, rows, strict=True):
        assert {"method": line["method"], "depth": line["depth"]} == row["condition"]
        assert float(line["mean"]) == pytest.approx(row["mean"], rel=1e-5)
        assert line["count"] == str(row["count"])
        difference = row["difference"]
        if difference is None:
            assert line["difference_mean"] == ""
        else:
            assert float(line["difference_low"]) == pytest.approx(difference["low"], abs=1e-4)
    assert json.loads(as_json)["figures"][0]["rows"][3]["values"]["3"] is None


def test_names_cannot_break_the_table(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text('{config: c, seeds: [1], metrics: [vid/AP50], factors: {f: ["a|b"]}}')
    one = [Result({"f": "a|b"}, 1, "val", {"vid": {"AP50": 1.0}})]
    markdown = make_report(load_study(str(path)), one, 0.95).markdown()
    assert "a\\|b" in markdown


def test_plots_have_a_dot_for_each_seed(
    study: Study, results: list[Result], tmp_path: Path
) -> None:
    from clab_d2.study.plots import differences_figure, values_figure

    report = make_report(study, results, 0.95)
    files = draw_report(report, tmp_path)
    assert [file.name for file in files] == ["values.png", "differences.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    axes = values_figure(report, report.figures).axes[0]
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    assert sum(map(len, dots)) == 11
    axes = differences_figure(report, report.figures).axes[0]
    dots = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[2, 1, 3], [0, 0]]


def test_several_datasets_have_a_table_each(
    study: Study, results: list[Result], tmp_path: Path
) -> None:
    both = [*results, result("plain", "R_50", 1, 10.0, dataset="other")]
    report = make_report(study, both, 0.95)
    markdown = report.markdown()
    assert "## val" in markdown and "## other" in markdown
    assert report.hours == 6, "the run was computed once"
    names = [file.name for file in draw_report(report, tmp_path)]
    assert names == ["val_values.png", "val_differences.png", "other_values.png"]


def test_a_place_of_several_figures_is_a_split_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "by_kind.yaml"
    path.write_text(
        "{config: c, factors: {f: [a, b]}, seeds: [1, 2, 3], baseline: {f: a}, "
        "metrics: [vid/AP50, vid/by-condition]}"
    )

    def one(level: str, seed: int, all_of_it: float, dark: float) -> Result:
        kinds = {"dark": dark, "no such object": None, "clear": 90.0 + seed}
        vid = {"AP50": all_of_it, "by-condition": kinds}
        return Result({"f": level}, seed, "val", {"vid": vid})

    values = {("a", 1): 30.0, ("a", 2): 31.0, ("a", 3): 32.0,
              ("b", 1): 40.0, ("b", 2): 41.1, ("b", 3): 42.2}  # fmt: skip
    results = [one(level, seed, 50.0, dark) for (level, seed), dark in values.items()]
    report = make_report(load_study(str(path)), results, 0.95)
    plain, split = report.tables()
    assert [(figure.metric, figure.name) for figure in plain] == [("vid/AP50", "vid/AP50")]
    assert [(figure.metric, figure.name) for figure in split] == [
        ("vid/by-condition/dark", "dark"), ("vid/by-condition/clear", "clear"),
    ]  # fmt: skip
    markdown = report.markdown()
    assert "## vid/by-condition\n\n| f   | seeds   |         dark |        clear |" in markdown
    assert "no such object" not in markdown
    assert "0 of these 1 intervals exclude 0; if nothing differed, chance would make" in markdown
    assert "1 of these 2 intervals exclude 0" in markdown
    assert markdown.count("these differ: none.") == 1
    assert "these differ: b (dark)." in markdown
    assert [file.name for file in draw_report(report, tmp_path)] == [
        "values.png", "differences.png",
        "values_vid_by-condition.png", "differences_vid_by-condition.png",
    ]  # fmt: skip


def test_many_panels_stand_in_lines(study: Study, results: list[Result]) -> None:
    from clab_d2.study.plots import values_figure

    report = make_report(study, results, 0.95)
    figure = values_figure(report, report.figures[:1] * 7)
    assert [axes.get_visible() for axes in figure.axes] == [True] * 7 + [False]
    assert len({axes.get_position().y0 for axes in figure.axes}) == 2


def test_a_metric_that_is_not_there_is_named(study: Study) -> None:
    one = [Result({"method": "plain", "depth": "R_50"}, 1, "val", {"vid": {"AP": 1.0}})]
    with pytest.raises(ConfigError, match=r"metrics has 'vid/AP50'.*there are vid/AP"):
        make_report(study, one, 0.95)


@pytest.mark.parametrize("confidence", [0, 0.4, 1, 95])
def test_a_confidence_out_of_range(study: Study, confidence: float) -> None:
    with pytest.raises(ConfigError, match="--confidence"):
        make_report(study, [], confidence)


# ---------------------------------------------------------------- keeping and merging


def test_results_round_trip(study: Study, results: list[Result], tmp_path: Path) -> None:
    path = tmp_path / "study_results.json"
    write_results(path, study, results)
    assert read_results(path) == ("grid", results)
    assert len(path.read_text().splitlines()) == len(results) + 2
    write_results(path, study, [])
    assert read_results(path) == ("grid", [])


def test_results_of_several_sessions_are_put_together(
    study: Study, results: list[Result], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    write_results(kept / "b.json", study, results[5:])
    write_results(kept / "deep" / "a.json", study, [*results[:6], result("new", "R_50", 1, 3.0)])
    (kept / "table.json").write_text("{}")
    merged, undeclared = merge_results([kept], study)
    assert merged == results
    assert undeclared == 1


def test_results_that_contradict_each_other(study: Study, tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        write_results(tmp_path / f"{name}.json", study, [result("plain", "R_50", 2, value)])
    with pytest.raises(DataError, match=r"b\.json: its metrics of plain, R_50, seed 2 on val"):
        merge_results([tmp_path / "a.json", tmp_path / "b.json"], study)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "holds no results of a study"),
        ('{"format": "clab_d2 study results", "version": 9}', "has version 9"),
        ('{"format": "clab_d2 study results", "version": 1}', "lacks study or results"),
        (
            '{"format": "clab_d2 study results", "version": 1, "study": "s", "results": [3]}',
            r"results\[0\] is not one",
        ),
        (
            '{"format": "clab_d2 study results", "version": 1, "study": "s", "results": '
            '[{"condition": {"a": 1}, "seed": 1, "dataset": "d", "metrics": {}}]}',
            r"results\[0\] is not one",
        ),
    ],
)
def test_other_files_are_told_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"r\.json: .*{said}"):
        read_results(path)


def test_tables_only_from_a_folder(
    study: Study, results: list[Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path / "kept" / "grid.json", study, results)
    output = tmp_path / "out"
    tool = import_tool("study")
    arguments = ["--study", study.source, "--output", str(output)]
    assert tool.main([*arguments, "--tables-only", str(tmp_path / "kept")]) == 0
    assert "+2.00 [-0.48, +4.48]" in capsys.readouterr().out
    assert {file.name for file in output.iterdir()} == {
        "study_results.json", "table.md", "table.json", "table.csv", "values.png",
        "differences.png",
    }  # fmt: skip
    # and from what is in the study's own folder
    (output / "table.md").unlink()
    assert tool.main([*arguments, "--tables-only"]) == 0
    assert (output / "table.md").exists()


def test_tables_only_without_results(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = import_tool("study")
    arguments = ["--study", study.source, "--output", str(tmp_path / "none")]
    assert tool.main([*arguments, "--tables-only"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
