from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "evaluate.py"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load(TOOL)
make_large = load(ROOT / "tests" / "evaluation" / "make_large.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A truth, and predictions that get worse from run to run."""
    folder = tmp_path_factory.mktemp("evaluate")
    _, predictions = make_large.make(folder, videos=4, frames=60, per_frame=20)
    entries = json.loads(predictions.read_text())
    for config, drop in (("good", 5), ("bad", 2)):
        for seed in range(2):
            kept = [entry for i, entry in enumerate(entries) if (i + seed) % drop]
            path = folder / f"{config}_s{seed}" / "predictions.json"
            path.parent.mkdir()
            path.write_text(json.dumps(kept))
    return folder


def run_tool(*args) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_one_file_end_to_end(data, tmp_path):
    output = tmp_path / "deep" / "m.json"
    done = run_tool(
        "--annotations", data / "truth.json", "--predictions", data / "predictions.json",
        "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(output.read_text())
    assert set(metrics) == {"bbox", "vid"}
    assert list(metrics["bbox"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert 0 < metrics["vid"]["AP50"] < 100
    assert {"AP50", "AP50-slow", "AP50-medium", "AP50-fast", "per-class"} <= set(metrics["vid"])
    assert f"{metrics['vid']['AP50']:.2f}" in done.stdout
    assert "Worst videos" in done.stdout


def test_bad_input_is_one_line_and_status_2(data, tmp_path, capsys):
    cut = tmp_path / "cut.json"
    cut.write_text((data / "predictions.json").read_text()[:-20])
    output = tmp_path / "m.json"
    status = tool.main(
        ["--annotations", str(data / "truth.json"), "--predictions", str(cut),
         "--output", str(output)]
    )  # fmt: skip
    assert status == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {cut}: not valid JSON")
    assert printed.count("\n") == 1
    assert not output.exists()


def test_several_configs_with_seeds(data, tmp_path, capsys):
    status = tool.main(
        ["--annotations", str(data / "truth.json"),
         "--group", f"good={data}/good_s*/predictions.json",
         "--group", f"bad={data}/**/bad_s*/predictions.json",
         "--output", str(tmp_path / "m.json"), "--plot", str(tmp_path / "plots"),
         "--worst", "2"]
    )  # fmt: skip
    assert status == 0
    printed = capsys.readouterr().out
    assert "±" in printed and "difference" in printed
    assert len(list((tmp_path / "plots").glob("*.png"))) == 4
    result = json.loads((tmp_path / "m.json").read_text())
    assert [run["label"] for run in result["runs"]] == ["good", "good", "bad", "bad"]
    means = {label: group["vid"]["AP50"]["mean"] for label, group in result["groups"].items()}
    assert means["good"] > means["bad"]
    of_good = [run["vid"]["AP50"] for run in result["runs"][:2]]
    assert means["good"] == pytest.approx(sum(of_good) / 2)
    assert len(result["worst-videos"]) == 2


def test_labels(data, capsys):
    paths = [str(data / name / "predictions.json") for name in ("good_s0", "good_s1", "bad_s0")]
    common = ["--annotations", str(data / "truth.json"), "--predictions", *paths]
    assert tool.main([*common, "--labels", "A", "A", "B"]) == 0
    assert "| A " in capsys.readouterr().out
    assert tool.main(common) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("good_s0", "good_s1", "bad_s0"))
    assert tool.main([*common, "--labels", "A"]) == 2
    assert "--labels gives 1 names for 3 files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to evaluate"),
        (["--group", "x"], "write NAME=PATTERN"),
        (["--group", "x=nowhere/*.json"], "no file matches nowhere"),
        (["--predictions", "nowhere.json"], "nowhere.json: no such file"),
        (["--predictions", "x.json", "--postprocess", "nms"], "'nms' is not registered; choose"),
        (["--predictions", "x.json", "--postprocess", "seq_nms", "x"], "x: write KEY=VALUE"),
        (["--predictions", "x.json", "--postprocess", "seq_nms", "WINDOWS=3"], "WINDOWS"),
        (["--predictions", "x.json", "--flicker", "7"], "--flicker is 7.0; it must be from 0 to 1"),
    ],
)
def test_wrong_options(data, capsys, options, message):
    assert tool.main(["--annotations", str(data / "truth.json"), *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") or "[1/" in printed
    assert message in printed


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/predictions.json"], ["predictions"]),
        (["x/a/p.json", "x/b/p.json"], ["a", "b"]),
        (["x/a/1/p.json", "x/b/2/p.json"], ["a/1", "b/2"]),
        (["p.json", "q.json"], ["p", "q"]),
        (["p.json", "p.json"], ["p", "p"]),
        (["a/p.json", "a/b/p.json"], ["p", "b/p"]),
        (["p.v1.json", "p.v2.json"], ["p.v1", "p.v2"]),
    ],
)
def test_short_names(paths, names):
    assert tool.short_names(paths) == names


def test_flicker_and_postprocessing(data, tmp_path, capsys):
    arguments = ["--annotations", str(data / "truth.json")]
    arguments += ["--predictions", str(data / "predictions.json"), "--flicker", "0.3"]
    results = {}
    for name, more in (("plain", []), ("processed", ["--postprocess", "seq_nms", "LINK_IOU=0.4"])):
        assert tool.main([*arguments, *more, "--output", str(tmp_path / name)]) == 0
        results[name] = json.loads((tmp_path / name).read_text())
        assert "| flicker " in capsys.readouterr().out
    plain, processed = results["plain"], results["processed"]
    assert list(plain) == ["bbox", "vid", "flicker"]
    names = ["score-threshold", "found", "class-changes", "gaps", "jitter"]
    assert list(plain["flicker"]) == names and plain["flicker"]["score-threshold"] == 0.3
    assert processed["flicker"]["class-changes"] < plain["flicker"]["class-changes"]
    assert processed["vid"] != plain["vid"]

    arguments[3:4] = [str(data / name / "predictions.json") for name in ("good_s0", "good_s1")]
    labels = ["--labels", "good", "good", "--output", str(tmp_path / "two")]
    assert tool.main([*arguments, *labels]) == 0
    group = json.loads((tmp_path / "two").read_text())["groups"]["good"]
    assert group["flicker"]["gaps"]["count"] == 2
    table = capsys.readouterr().out.split("| flicker ")[1].split("\n\n")[0]
    assert table.count("±") >= 4


def test_tracks(data, tmp_path, capsys):
    truth = json.loads((data / "truth.json").read_text())
    tracked = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"],
         "score": 0.9, "track_id": a["instance_id"]}
        for a in truth["annotations"]
    ]  # fmt: skip
    path, output = tmp_path / "tracked.json", tmp_path / "m.json"
    path.write_text(json.dumps(tracked))
    arguments = ["--annotations", str(data / "truth.json"), "--tracks", "--output", str(output)]
    assert tool.main([*arguments, "--predictions", str(path)]) == 0
    figures = json.loads(output.read_text())["tracks"]
    assert list(figures) == ["HOTA", "DetA", "AssA", "MOTA", "IDF1", "IDSW"]
    assert figures["HOTA"] == pytest.approx(100) and figures["IDSW"] == 0
    assert "| tracks " in capsys.readouterr().out

    # As tools/demo.py writes it: by video, frame and class name, with ids of its own.
    image_of = {image["id"]: image for image in truth["images"]}
    videos = {video["id"]: video["name"] for video in truth["videos"]}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for entry in tracked:
        image = image_of[entry["image_id"]]
        entry["video"], entry["frame_id"] = videos[image["video_id"]], image["frame_id"]
        entry["category"] = names[entry["category_id"]]
        entry["image_id"] = entry["category_id"] = 1
    path.write_text(json.dumps(tracked))
    assert tool.main([*arguments, "--predictions", str(path)]) == 0
    assert json.loads(output.read_text())["tracks"] == figures

    # A file for each video, as tools/detect_videos.py writes them.
    folder = tmp_path / "results"
    (folder / "deep").mkdir(parents=True)
    for number, video in enumerate(sorted({entry["video"] for entry in tracked})):
        file = folder / ("deep" if number else "") / f"{number}.mp4.json"
        file.write_text(json.dumps([entry for entry in tracked if entry["video"] == video]))
    (folder / "broken_off.partial.json").write_text("[")
    assert number > 0
    assert tool.main([*arguments, "--predictions", str(folder)]) == 0
    assert json.loads(output.read_text())["tracks"] == figures
    empty = tmp_path / "empty"
    empty.mkdir()
    assert tool.main([*arguments, "--predictions", str(empty)]) == 2
    assert "the folder holds no .json" in capsys.readouterr().err

    assert tool.main([*arguments, "--predictions", str(data / "predictions.json")]) == 2
    assert "no detection has a track_id" in capsys.readouterr().err


def test_only_some_classes(data, tmp_path, capsys):
    truth = json.loads((data / "truth.json").read_text())
    name = truth["categories"][1]["name"]
    arguments = ["--annotations", str(data / "truth.json")]
    arguments += ["--predictions", str(data / "predictions.json")]
    assert tool.main([*arguments, "--output", str(tmp_path / "all.json")]) == 0
    assert tool.main([*arguments, "--output", str(tmp_path / "m.json"), "--classes", name]) == 0
    whole = json.loads((tmp_path / "all.json").read_text())["vid"]
    some = json.loads((tmp_path / "m.json").read_text())["vid"]
    assert some["per-class"] == {name: whole["per-class"][name]}
    assert some["AP50"] == whole["per-class"][name] != whole["AP50"]
    capsys.readouterr()
    assert tool.main([*arguments, "--classes", name, "unicorn"]) == 2
    assert "--classes: " in (line := capsys.readouterr().err) and "no category 'unicorn'" in line
