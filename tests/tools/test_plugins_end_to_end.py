"""The plug-ins of tests/plugins by the command lines of docs/extend.md, and nothing else."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from detectron2.utils.logger import setup_logger
from encoded_videos import encode, moving_pictures
from extend_page import EXAMPLES, ROOT, Example
from tiny_videos import TinyVideos, make_tiny_videos
from tool_modules import import_tool

from clab_d2.engine import argument_parser, run

train_net, demo = import_tool("train_net"), import_tool("demo")
QUICK = ROOT / "configs" / "quick_schedules" / "clab_quick.yaml"
#: A checkpoint after each iteration, and a device that every machine has.
FAST = ["SOLVER.CHECKPOINT_PERIOD", "1", "MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> TinyVideos:
    return make_tiny_videos(tmp_path_factory.mktemp("plugin_videos"), lengths=(4, 2))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("plugin_clip") / "in.mp4", moving_pictures(5, 64, 96))


def write_config(example: Example, folder: Path) -> Path:
    """The example's YAML, on the config of a tiny detector."""
    path = folder / "mine.yaml"
    path.write_text(example.with_base(QUICK))
    return path


def train(arguments: Sequence[str]) -> int:
    """tools/train_net.py in this process, which saves the time of its imports."""
    try:
        return run(train_net.train_or_evaluate, argument_parser().parse_args(list(arguments)))
    finally:
        # Log handlers outlive the run, but not what pytest has put in the place of stdout.
        for name in ("detectron2", "fvcore", "clab_d2"):
            logging.getLogger(name).handlers.clear()
        setup_logger.cache_clear()


def rows(output: Path) -> list[dict[str, float]]:
    lines = (output / "metrics.json").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "lr" in row]


def results(output: Path) -> tuple[object, object]:
    folder = output / "inference" / "tiny"
    return tuple(
        json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "predictions")
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_trains_resumes_evaluates_and_detects(
    example: Example, videos: TinyVideos, clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    plugged = ["--import", str(example.file), "--config-file", str(write_config(example, tmp_path))]
    options = [*videos.options, *FAST, "OUTPUT_DIR", str(output)]

    assert train([*plugged, *options, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"]) == 0
    assert train([*plugged, "--resume", *options, "SOLVER.MAX_ITER", "3"]) == 0
    assert [row["iteration"] for row in rows(output)] == [0, 1, 2], "the last one after resuming"

    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    again = ["OUTPUT_DIR", str(tmp_path / "again")]
    assert train([*plugged, "--eval-only", *options, *again, *weights]) == 0
    assert results(tmp_path / "again") == results(output)

    found = tmp_path / "found.json"
    assert demo.main(
        [
            *plugged,
            *("--input", str(clip), "--output", str(tmp_path / "drawn.mp4"), "--json", str(found)),
            *("--opts", *videos.options, *FAST, *weights),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
        ]
    ) == 0  # fmt: skip
    frames = {detection["frame_id"] for detection in json.loads(found.read_text())}
    assert frames == set(range(5))


def test_several_processes_of_a_fresh_python(videos: TinyVideos, tmp_path: Path) -> None:
    """Imported in each of them, which this process's registries know nothing of."""
    (example,) = (example for example in EXAMPLES if example.name == "margin_contrast")
    output = tmp_path / "out"
    process = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools" / "train_net.py")),
            *("--import", str(example.file), "--num-gpus", "2"),
            *("--config-file", str(write_config(example, tmp_path))),
            *videos.options,
            *(*FAST, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(output)),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert [row["iteration"] for row in rows(output)] == [0, 1]
    assert all(row["loss_contrastive"] >= 0 for row in rows(output))
    assert (output / "inference" / "tiny" / "metrics.json").is_file()
