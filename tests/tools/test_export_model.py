"""tools/export_model.py, and its folder run by both runtimes, also where there is no PyTorch."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from encoded_videos import encode, moving_pictures, play
from exported import assert_alike, moving_noise, random_config, random_detector
from tool_modules import import_tool

from clab_d2.benchmark import OURS, Setting
from clab_d2.checkpoint.model_file import ModelCard, write_model_file
from clab_d2.checkpoint.portable_config import config_to_plain
from clab_d2.errors import ConfigError, DataError
from clab_d2.export.quantize import quantize_backbone
from clab_d2.export.runtime_benchmark import PYTORCH, compare_runtimes, shorter
from clab_d2.runtime.description import Description
from clab_d2.runtime.model import ExportedModel
from clab_d2.runtime.sessions import RUNTIMES
from clab_d2.video import VideoDetector

pytest.importorskip("onnxscript")
export_model = import_tool("export_model")
demo = import_tool("demo")
benchmark = import_tool("benchmark")
NAMES = ["square", "disc", "bar"]
# Of tools/benchmark.py, what its tables always have.
COMPARED = {
    "config": "c.yaml", "options": [], "size": [64, 96], "references": 2, "machine": "m",
    "clock": "seconds", "seconds": {OURS: [1.0]}, "variants": {}, "stages": {"all": 1.0},
}  # fmt: skip

# Before all else in a process: it finds neither PyTorch nor what comes with it.
WITHOUT_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "detectron2", "fvcore", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


@dataclass(frozen=True)
class Exported:
    """A model's file, and the folder made of it."""

    weights: Path
    folder: Path


def write_model(path: Path, config_file: Path, *options: object) -> Path:
    cfg = random_config(config_file, *options)
    card = ModelCard(config_to_plain(cfg), NAMES)
    write_model_file(path, random_detector(cfg).state_dict(), card)
    return path


@pytest.fixture(scope="module")
def clab(tmp_path_factory: pytest.TempPathFactory, config_file: str) -> Exported:
    """Temporal RoI Align and SELSA, for frames of any size."""
    folder = tmp_path_factory.mktemp("clab")
    weights = write_model(folder / "model.pth", Path(config_file))
    assert export_model.main(["--weights", str(weights), "--output", str(folder / "out")]) == 0
    return Exported(weights, folder / "out")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Exported:
    """A single-frame detector, for frames of one size."""
    folder = tmp_path_factory.mktemp("single")
    config_file = repo_root / "configs" / "quick_schedules" / "faster_rcnn_quick.yaml"
    weights = write_model(folder / "model.pth", config_file)
    command = ["--weights", str(weights), "--output", str(folder / "out"), "--size", "64", "96"]
    assert export_model.main(command) == 0
    return Exported(weights, folder / "out")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Exported:
    """A one-stage detector on the pyramid of configs/Lite, for frames of any size."""
    folder = tmp_path_factory.mktemp("dense")
    config_file = repo_root / "configs" / "quick_schedules" / "dense_quick.yaml"
    stages = ["res3", "res4"]
    weights = write_model(
        folder / "model.pth", config_file, "MODEL.BACKBONE.NAME", "build_light_fpn_backbone",
        "MODEL.BACKBONE.BOTTOM_UP", "build_resnet_backbone", "MODEL.FPN.OUT_CHANNELS", 32,
        "MODEL.RESNETS.OUT_FEATURES", stages, "MODEL.FPN.IN_FEATURES", stages,
        "MODEL.DENSE.TOWERS", "Separable", "MODEL.RETINANET.IN_FEATURES", ["p3", "p4"],
    )  # fmt: skip
    assert export_model.main(["--weights", str(weights), "--output", str(folder / "out")]) == 0
    return Exported(weights, folder / "out")


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Exported:
    """A two-stage detector as configs/OwnVideos has it, with less of everything."""
    folder = tmp_path_factory.mktemp("pyramid")
    weights = write_model(
        folder / "model.pth", repo_root / "configs" / "OwnVideos" / "clab_384.yaml",
        "MODEL.TIMM.NAME", "tf_mobilenetv3_small_minimal_100", "MODEL.FPN.OUT_CHANNELS", 32,
        "MODEL.FPN.IN_FEATURES", ["res4", "res5"], "MODEL.ROI_HEADS.IN_FEATURES", ["p4", "p5"],
        "MODEL.RPN.IN_FEATURES", ["p4", "p5", "p6"],
        "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]],
        "MODEL.RPN.CONV_DIMS", [32], "MODEL.RPN.PRE_NMS_TOPK_TEST", 50,
        "MODEL.RPN.POST_NMS_TOPK_TEST", 24, "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
        "MODEL.CONTRASTIVE.ENABLED", False, "MODEL.AGGREGATION.START_AS_IDENTITY", False,
        "INPUT.MIN_SIZE_TEST", 128, "INPUT.MAX_SIZE_TEST", 192, "TEST.REFERENCES.NUM", 4,
    )  # fmt: skip
    assert export_model.main(["--weights", str(weights), "--output", str(folder / "out")]) == 0
    return Exported(weights, folder / "out")


@pytest.mark.parametrize("kind", ["clab", "dense", "pyramid"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_detections_are_pytorchs_on_two_videos(
    kind: str, runtime: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip(runtime)
    model: Exported = request.getfixturevalue(kind)
    detector = VideoDetector.from_file(model.weights, device="cpu")
    exported = VideoDetector.from_file(model.folder, runtime=runtime)
    assert exported.class_names == NAMES
    for video, mode in ((moving_noise(1, 7, 64, 96), "offline"),
                        (moving_noise(2, 6, 130, 90), "online")):  # fmt: skip
        assert_alike(exported.detect(video, mode), detector.detect(video, mode), least=100)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_folder_for_one_size(single: Exported, runtime: str) -> None:
    pytest.importorskip(runtime)
    detector = VideoDetector.from_file(single.weights, device="cpu")
    exported = VideoDetector.from_file(single.folder, runtime=runtime)
    video = moving_noise(3, 3, 64, 96)
    assert_alike(exported.detect(video), detector.detect(video), least=20)
    with pytest.raises(DataError, match="exported for 64x96; export it without --size"):
        list(exported.detect(moving_noise(3, 2, 96, 64)))


def test_runtimes_are_timed_side_by_side(config_file: str) -> None:
    installed = [name for name in RUNTIMES if importlib.util.find_spec(name)]
    cfg = random_config(config_file)
    taken = compare_runtimes(Setting(cfg, (64, 96), num_references=2), num_keys=6)
    assert taken is not None
    assert list(taken.seconds) == [PYTORCH, *installed]
    assert all(len(times) == 2 and min(times) > 0 for times in taken.seconds.values())
    text = benchmark.tables({**COMPARED, "runtimes": dataclasses.asdict(taken)})
    assert "by PyTorch and exported, with frames of 64x96 and 2 references:" in text
    assert all(f"| {name}" in text for name in taken.seconds)


def test_the_paper_s_detector_is_compared_at_a_size_that_fits(config_file: str) -> None:
    cfg = random_config(config_file)
    large = shorter(Setting(cfg, (600, 1000), num_references=14))
    assert (large.size, large.num_references) == ((300, 500), 4)
    small = Setting(cfg, (64, 96), num_references=3)
    assert shorter(small) == small


def test_the_demo_without_pytorch(clab: Exported, tmp_path: Path, repo_root: Path) -> None:
    pytest.importorskip("onnxruntime")
    clip = encode(tmp_path / "in.mp4", moving_pictures(6, 64, 96))
    expected, found = tmp_path / "expected.json", tmp_path / "found.json"
    arguments = ["--input", str(clip), "--score-threshold", "0.02", "--json"]
    assert demo.main(["--weights", str(clab.weights), *arguments, str(expected)]) == 0
    tool = repo_root / "tools" / "demo.py"
    code = WITHOUT_TORCH + (
        f"import runpy\nsys.argv[0] = {str(tool)!r}\n"
        f"runpy.run_path({str(tool)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--weights", str(clab.folder), *arguments, str(found),
         "--output", str(tmp_path / "out.mp4"), "--track"],
        cwd=repo_root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(play(tmp_path / "out.mp4")) == 6
    ours, theirs = (json.loads(path.read_text()) for path in (found, expected))
    assert len(ours) == len(theirs) > 100
    by_frame = [sorted((r["frame_id"], r["category"], round(r["score"], 2)) for r in records)
                for records in (ours, theirs)]  # fmt: skip
    differing = sum(a != b for a, b in zip(*by_frame, strict=True))
    assert differing <= len(ours) / 50, "but for roundings of scores"


def test_int8_is_of_the_backbone_alone(single: Exported, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "int8"
    shutil.copytree(single.folder, folder)
    video = moving_noise(3, 4, 64, 96)
    quantize_backbone(folder, Description.load(folder), video)
    assert Description.load(folder).precision == "int8"
    nodes = onnx.load(folder / "frame.onnx").graph.node
    made_by = {name: node for node in nodes for name in node.output}
    convs = [node for node in nodes if node.op_type == "Conv"]
    sources = [made_by.get(conv.input[0]) for conv in convs]
    in_int8 = [source is not None and source.op_type == "DequantizeLinear" for source in sources]
    assert 0 < sum(in_int8) < len(convs), "those of the RPN stay"
    assert sources[0] is None and convs[0].input[0] == "image", "the first stays, too"
    for runtime in RUNTIMES:
        pytest.importorskip(runtime)
        whole, coarse = (ExportedModel.load(path, runtime) for path in (single.folder, folder))
        for frame in video:
            image = whole.description.preprocessing.resize(frame)
            exact, rounded = (m.extract(image).own["roi_features"] for m in (whole, coarse))
            # The same RoIs where the order of proposals is the same, as that of the first is.
            assert np.abs(exact[0] - rounded[0]).mean() < 0.3 * np.abs(exact[0]).mean()


def test_frames_that_calibrate_are_spread_over_a_folder_s_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, length in (("a", 9), ("b", 1), ("c", 5)):
        encode(tmp_path / f"{name}.mp4", moving_pictures(length))
    monkeypatch.setattr(export_model, "MAX_FRAMES", 8)
    videos = export_model.calibration_videos(str(tmp_path))
    assert [Path(video).name for video in videos] == ["a.mp4", "b.mp4", "c.mp4"]
    assert len(list(export_model.spread_frames(videos))) == 2 + 1 + 3
    monkeypatch.setattr(export_model, "MAX_FRAMES", 2)
    assert len(export_model.calibration_videos(str(tmp_path))) == 2
    assert export_model.spread(9, 3) == [1, 4, 7]


def test_what_needs_pytorch_says_so(repo_root: Path, clab: Exported) -> None:
    code = WITHOUT_TORCH + (
        "from clab_d2 import VideoDetector\n"
        f"VideoDetector.from_file({str(clab.weights)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False
    )
    assert "clab_d2: PyTorch is missing" in done.stderr.splitlines()[-1]


def test_mistakes_are_one_line(
    clab: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="an exported model takes no options"):
        VideoDetector.from_file(clab.folder, options=["TEST.REFERENCES.NUM", "3"])
    with pytest.raises(ConfigError, match="choose one of onnxruntime, openvino"):
        VideoDetector.from_file(clab.folder, runtime="tensorrt")
    with pytest.raises(ConfigError, match=r"model\.pth is no folder of one"):
        VideoDetector.from_file(clab.weights, runtime="onnxruntime")
    with pytest.raises(DataError, match="no exported model"):
        VideoDetector.from_file(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(clab.folder, broken)
    (broken / "frame.onnx").write_bytes((clab.folder / "frame.onnx").read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"frame\.onnx: no ONNX model \(it is cut off\)"):
        VideoDetector.from_file(broken)
    shutil.copy(clab.folder / "key_frame.onnx", broken / "frame.onnx")
    with pytest.raises(DataError, match="of another model than their description"):
        VideoDetector.from_file(broken)
    for options, message in (
        (["--size", "60", "96"], "padded to multiples of 16"),
        (["--int8", str(tmp_path / "none.mp4")], "none.mp4: no such video"),
        (["--opts", "TEST.POSTPROCESS.NAME", "seq_nms"], "TEST.POSTPROCESS.NAME 'seq_nms'"),
        (["--opts", "TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED"),
    ):
        command = ["--weights", str(clab.weights), "--output", str(tmp_path / "new"), *options]
        assert export_model.main(command) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
