"""The file that a training writes is all that its detector needs, wherever it goes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from encoded_videos import encode, moving_pictures, play
from tiny_videos import CLASSES, TinyVideos, make_tiny_videos
from tool_modules import import_tool

import clab_d2.config
from clab_d2.checkpoint.model_file import CARD_KEY, ModelCard, write_model_file
from clab_d2.checkpoint.portable_config import config_to_plain
from clab_d2.engine.launch import load_config
from clab_d2.errors import ConfigError, DataError
from clab_d2.video import VideoDetector

demo, train_net = import_tool("demo"), import_tool("train_net")

PICTURES = moving_pictures(5, 64, 96)
LOW = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
OPTIONS = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1", *LOW]


def train(config_file: str, *arguments: str) -> int:
    args = train_net.argument_parser().parse_args(["--config-file", config_file, *arguments])
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "clab_d2")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    try:
        return train_net.run(train_net.train_or_evaluate, args)
    finally:  # the run's files, and what other tests find of its log
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.handlers.clear()
            logger.setLevel(level)
            logger.propagate = propagate
        setup_logger.cache_clear()


@dataclass(frozen=True)
class Trained:
    """A training's output, and what its detector finds by config and weights."""

    output: Path
    videos: TinyVideos
    expected: list[tuple[list[Any], ...]]


def detections(detector: VideoDetector) -> list[tuple[list[Any], ...]]:
    found = [result.instances for result in detector.detect(PICTURES)]
    return [
        (i.pred_boxes.tensor.tolist(), i.scores.tolist(), i.pred_classes.tolist()) for i in found
    ]


@pytest.fixture(scope="module", autouse=True)
def no_plugins() -> Iterator[None]:
    """Whose keys, of other tests in this process, would stand in the file, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clab_d2.config, "_extensions", {})
        yield


@pytest.fixture(scope="module")
def trained(config_file: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    videos = make_tiny_videos(folder / "videos", lengths=(5, 3))
    options = [*videos.options, *OPTIONS, "OUTPUT_DIR", str(folder / "output")]
    assert train(config_file, *options) == 0
    weights = folder / "output" / "model_final.pth"
    cfg = load_config(config_file, [*options, "MODEL.WEIGHTS", str(weights)])
    return Trained(folder / "output", videos, detections(VideoDetector(cfg)))


def change(source: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a model's file with another card."""
    content = torch.load(source)
    edit(content[CARD_KEY])
    torch.save(content, target)
    return target


def test_what_a_training_writes(trained: Trained) -> None:
    final = torch.load(trained.output / "model_final.pth")
    assert final.keys() == {"model", "__author__", "matching_heuristics", CARD_KEY}
    assert not [name for name in final["model"] if name.startswith("contrastive_branch")]
    card = final[CARD_KEY]
    assert card["class_names"] == list(CLASSES)
    assert card["iterations"] == 2
    assert card["metrics"]["bbox"].keys() >= {"AP", "AP50"}
    assert card["metrics"]["vid"]
    assert card["config"]["SOLVER"]["MAX_ITER"] == 2
    assert str(trained.output.parent) not in json.dumps(card), "paths stay at home"
    assert (trained.output / "last_checkpoint").read_text() == "model_0000001.pth"
    resumable = torch.load(trained.output / "model_0000001.pth")
    assert resumable["trainer"] and resumable[CARD_KEY]["class_names"] == list(CLASSES)
    sizes = [(trained.output / f"model_{name}.pth").stat().st_size for name in ("final", "0000001")]
    assert sizes[0] < sizes[1] / 2, "no state of the optimizer"


@pytest.mark.parametrize(
    "name", ["model_final.pth", "model_final.safetensors", "model_0000001.pth"]
)
def test_one_file_is_enough(trained: Trained, tmp_path: Path, name: str) -> None:
    moved = shutil.copy(trained.output / name, tmp_path)
    detector = VideoDetector.from_file(moved, device="cpu")
    assert detector.class_names == list(CLASSES)
    assert detector.cfg.MODEL.DEVICE == "cpu"
    assert detector.model.contrastive_branch is None
    assert sum(len(scores) for _, scores, _ in trained.expected) > 50
    assert detections(detector) == trained.expected


def test_from_another_folder_with_nothing_else_at_hand(
    repo_root: Path, trained: Trained, tmp_path: Path
) -> None:
    """The package and the tool alone, far from the repository's configs and datasets."""
    site, here = tmp_path / "site", tmp_path / "here"
    shutil.copytree(repo_root / "clab_d2", site / "clab_d2", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(repo_root / "tools" / "demo.py", site)
    here.mkdir()
    shutil.copy(trained.output / "model_final.pth", here)
    encode(here / "clip.mp4", PICTURES)
    command = "demo.py --weights model_final.pth --input clip.mp4 --output drawn.mp4 --json f.json"
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, site / script, *arguments, "--score-threshold", "0"],
        cwd=here, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(play(here / "drawn.mp4")) == len(PICTURES)
    found = json.loads((here / "f.json").read_text())
    assert all(d["category"] == CLASSES[d["category_id"] - 1] for d in found)
    assert len(found) > 50 and {d["frame_id"] for d in found} == set(range(len(PICTURES)))
    assert sorted(p.name for p in here.iterdir()) == [
        "clip.mp4", "drawn.mp4", "f.json", "model_final.pth",
    ]  # fmt: skip


def test_options_change_the_files_config(trained: Trained) -> None:
    options = ["TEST.REFERENCES.SAMPLING", "causal", "TEST.DETECTIONS_PER_IMAGE", "3"]
    path = trained.output / "model_final.pth"
    detector = VideoDetector.from_file(path, device="cpu", options=options)
    assert detector.cfg.TEST.REFERENCES.SAMPLING == "causal"
    assert {len(scores) for _, scores, _ in detections(detector)} == {3}
    for wrong in (
        ["TEST.REFERENCES.SAMPLINGS", "x"],
        ["TEST.PRECISION", "fp8"],
        ["TEST.PRECISION"],
    ):
        with pytest.raises(ConfigError):
            VideoDetector.from_file(path, options=wrong)


def test_with_a_config_the_names_still_come_from_the_file(
    config_file: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no dataset has to be there."""
    gone = ["DATASETS.VID", "[['mine', 'gone/train.json', 'gone']]", "DATASETS.TEST", "('mine',)"]
    clip = encode(tmp_path / "clip.mp4", PICTURES)
    arguments = ["--config-file", config_file, "--weights", str(trained.output / "model_final.pth")]
    arguments += ["--input", str(clip), "--output", str(tmp_path / "out.mp4")]
    arguments += ["--json", str(tmp_path / "f.json"), "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    assert demo.main([*arguments, "MODEL.DEVICE", "cpu", *gone]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert found and all(d["category"] == CLASSES[d["category_id"] - 1] for d in found)


def test_files_that_say_nothing_of_their_config(
    config_file: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.pth"
    torch.save({"model": torch.load(trained.output / "model_final.pth")["model"]}, old)
    clip = encode(tmp_path / "clip.mp4", PICTURES)
    arguments = ["--weights", str(old), "--input", str(clip), "--output", str(tmp_path / "o.mp4")]
    assert demo.main(arguments) == 2
    [line] = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("error: ")]
    assert "old.pth: says nothing of its config" in line and "--config-file" in line
    options = ["--opts", *trained.videos.options, "MODEL.DEVICE", "cpu"]
    assert demo.main([*arguments, "--config-file", config_file, *options]) == 0
    assert demo.main(arguments[2:]) == 2
    assert "no model given; add --weights" in capsys.readouterr().err


def test_a_finished_training_resumes(
    config_file: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that it is finished, and evaluates; with more iterations it goes on."""
    output = tmp_path / "output"
    shutil.copytree(trained.output, output)
    (output / "model_final.pth").unlink()
    options = [*trained.videos.options, *OPTIONS, "OUTPUT_DIR", str(output)]
    assert train(config_file, "--resume", *options) == 0
    log = (output / "log.txt").read_text()
    assert "at iteration 2 of 2: the training is finished, and is evaluated again" in log
    before = torch.load(trained.output / "model_final.pth")
    again = torch.load(output / "model_final.pth")
    assert again[CARD_KEY] == before[CARD_KEY]
    assert all(torch.equal(again["model"][name], w) for name, w in before["model"].items())
    assert train(config_file, "--resume", *options, "SOLVER.MAX_ITER", "3") == 0
    assert torch.load(output / "model_final.pth")[CARD_KEY]["iterations"] == 3


@pytest.mark.parametrize("order", [(2, 1, 0), (0, 1)])
def test_evaluation_checks_the_class_names(
    config_file: str, trained: Trained, tmp_path: Path, order: tuple[int, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content = json.loads(trained.videos.json_file.read_text())
    content["categories"] = [content["categories"][index] for index in order]
    known = {category["id"] for category in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in known]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    entry = [["other", str(other), str(trained.videos.image_root)]]
    options = [*trained.videos.options, *OPTIONS, "OUTPUT_DIR", str(tmp_path / "out")]
    options += ["DATASETS.VID", str(entry), "DATASETS.TRAIN", "('other',)"]
    options += ["DATASETS.TEST", "('other',)", "MODEL.ROI_HEADS.NUM_CLASSES", str(len(order))]
    options += ["MODEL.WEIGHTS", str(trained.output / "model_final.pth")]
    assert train(config_file, "--eval-only", *options) == 2
    [line] = [ln for ln in capfd.readouterr().err.splitlines() if ln.startswith("error: ")]
    assert "model_final.pth: its classes are not those of the dataset" in line
    assert ("number 0 is square" if len(order) == 3 else "the second lacks bar") in line
    # To start a training, the rows of the classes that it shares are kept.
    assert train(config_file, *options) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert f"{len(order)} of the dataset's {len(order)} classes are among its own" in log
    assert "new and random: none" in log


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "a wide layer": lambda c: c["config"]["MODEL"]["ROI_BOX_HEAD"].update(FC_DIM=10**6),
    "a wider layer": lambda c: c["config"]["MODEL"]["ROI_BOX_HEAD"].update(FC_DIM=10**9),
    "many layers": lambda c: c["config"]["MODEL"]["ROI_BOX_HEAD"].update(NUM_FC=10**6),
    "a large image": lambda c: c["config"]["INPUT"].update(MIN_SIZE_TEST=10**6),
    "many classes": lambda c: c["config"]["MODEL"]["ROI_HEADS"].update(NUM_CLASSES=10**6),
    "many names": lambda c: c.update(class_names=["x"] * 10),
    "an unknown part": lambda c: c["config"]["MODEL"]["ROI_HEADS"].update(NAME="Theirs"),
    "an unknown method": lambda c: c["config"]["MODEL"]["AGGREGATION"].update(MAPS="Theirs"),
    "an unknown key": lambda c: c["config"]["MODEL"].update(THEIRS=3),
    "a path": lambda c: c["config"]["MODEL"]["BACKBONE"].update(NAME="/etc/passwd"),
    "no such depth": lambda c: c["config"]["MODEL"]["RESNETS"].update(DEPTH=7),
    "no anchors": lambda c: c["config"]["MODEL"]["ANCHOR_GENERATOR"].update(SIZES=[]),
    "other widths": lambda c: c["config"]["MODEL"]["NECK"].update(OUT_CHANNELS=7),
    "no config": lambda c: c.update(config=None),
    "another format": lambda c: c.update(format=99),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_strangers_config_ends_in_one_line(trained: Trained, tmp_path: Path, what: str) -> None:
    path = change(trained.output / "model_final.pth", tmp_path / "w.pth", HOSTILE[what])
    with pytest.raises(DataError) as caught:
        VideoDetector.from_file(path, device="cpu")
    assert str(caught.value).startswith(f"{path}: ")
    if "unknown" in what:
        assert "--import" in str(caught.value)


def test_a_strangers_config_opens_nothing(trained: Trained, tmp_path: Path) -> None:
    """By Python's own account of every file opened, module imported and address called."""
    bait = tmp_path / "bait"

    def edit(card: dict[str, Any]) -> None:
        config = card["config"]
        config["_BASE_"] = f"{bait}.yaml"
        config["MODEL"].update(WEIGHTS=f"{bait}.pth", TRUST_WEIGHTS=True)
        config["MODEL"]["FLOW_GUIDED"]["FLOW_WEIGHTS"] = f"{bait}.pth"
        config["DATASETS"]["VID"] = [["tiny", f"{bait}.json", str(bait)]]
        config["DATASETS"]["TEST"] = config["DATASETS"]["TRAIN"] = ["tiny"]
        config["TEST"]["EXPECTED_RESULTS"] = [[f"{bait}", "AP", 1.0, 0.1]]
        config["OUTPUT_DIR"] = str(bait)

    path = change(trained.output / "model_final.pth", tmp_path / "w.pth", edit)
    script = """
import sys
from clab_d2.video import VideoDetector
from clab_d2.engine import model_loading
import numpy as np
events = []
sys.addaudithook(lambda event, args: events.append((event, str(args))))
detector = VideoDetector.from_file(sys.argv[1], device="cpu")
assert len(list(detector.detect([np.zeros((64, 96, 3), np.uint8)] * 2))) == 2
assert "open" in {event for event, _ in events}, "the hook works"
touched = [e for e in events if "bait" in e[1] or e[0].startswith(("socket.", "subprocess."))]
assert not touched, touched
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("bait*"))


def test_a_part_that_lacks_its_weights_fetches_none(repo_root: Path, tmp_path: Path) -> None:
    """The flow network's would else come from torchvision."""
    cfg = load_config(
        str(repo_root / "configs/quick_schedules/flow_guided_quick.yaml"),
        ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"],
    )
    names = [f"kind {index}" for index in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    weights, path = build_model(cfg).state_dict(), tmp_path / "w.pth"
    card = ModelCard(config_to_plain(cfg), names)
    write_model_file(path, weights, card)
    assert VideoDetector.from_file(path, device="cpu").class_names == names
    flow = [name for name in weights if ".flow" in name]
    assert flow
    write_model_file(path, {n: w for n, w in weights.items() if n not in flow}, card)
    with pytest.raises(DataError, match=f"lacks {len(flow)} of the model's"):
        VideoDetector.from_file(path, device="cpu")


def test_code_in_a_file_does_not_run(trained: Trained, tmp_path: Path) -> None:
    class Bait:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "bait"),)

    path = change(
        trained.output / "model_final.pth", tmp_path / "w.pth", lambda c: c.update(x=Bait())
    )
    with pytest.raises(DataError, match="could run code"):
        VideoDetector.from_file(path, device="cpu")
    assert not (tmp_path / "bait").exists()


def test_frames_of_a_program(trained: Trained) -> None:
    """As in the README: a file and frames, no more."""
    detector = VideoDetector.from_file(trained.output / "model_final.safetensors")
    for result in detector.detect([np.zeros((48, 64, 3), np.uint8)]):
        assert result.image.shape == (48, 64, 3)
        assert result.instances.image_size == (48, 64)
