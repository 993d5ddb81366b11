"""The command line of the converter: what it prints, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from detectron2.modeling import build_model

from clab_d2.checkpoint.model_file import ModelCard, read_card
from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.config import get_clab_cfg
from clab_d2.data.imagenet_vid import IMAGENET_VID_CLASSES
from clab_d2.engine import VIDCheckpointer
from clab_d2.video import VideoDetector

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_checkpoint.py"
TINY_CONFIG = TOOL.parents[1] / "configs" / "quick_schedules" / "clab_tiny_golden.yaml"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("convert_checkpoint_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def resnet18(tmp_path) -> Path:
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def test_torchvision_weights_are_converted_and_every_key_accounted_for(
    tool, tmp_path, resnet18, capsys
):
    state = torch.load(resnet18)
    state["layer1.0.strange.weight"] = torch.ones(2)
    torch.save(state, resnet18)
    output = tmp_path / "out.pth"
    assert tool.main([str(resnet18), str(output)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "found: torchvision-style ImageNet weights, ResNet-18",
        "placed 100 of 123 weights",
        "left out 20 batch counters (num_batches_tracked)",
        "left out, being the ImageNet classifier: fc.weight, fc.bias",
        "could not place: layer1.0.strange.weight",
        f"wrote {output}; use it as MODEL.WEIGHTS {output}",
    ]
    weights = load_weights_file(output)["model"]
    assert len(weights) == 100
    assert torch.equal(weights["backbone.bottom_up.stem.conv1.weight"], state["conv1.weight"])


def test_the_golden_checkpoint_is_told_and_placed_whole(tool, golden, tmp_path, capsys):
    source = golden("tiny_clab/checkpoint.pth")
    assert tool.main([str(source), str(tmp_path / "out.pth")]) == 0
    printed = capsys.readouterr().out
    assert "CLAB release checkpoint, Temporal RoI Align, ResNet-50" in printed
    assert "4 scales x 3 ratios of anchors, 30 classes" in printed
    assert "placed 315 of 368 weights" in printed
    assert "could not place" not in printed


@pytest.mark.parametrize(
    ("opts", "complaint"),
    [
        ([], None),
        (["MODEL.AGGREGATION.ROI_FEATURES", ""], None),
        (
            ["MODEL.ROI_BOX_HEAD.FC_DIM", "64"],
            "roi_heads.box_head.fc1.weight has shape (128, 3136)",
        ),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "8"], "has shape (31, 128) and the config wants (9, 128)"),
        (["MODEL.NECK.OUT_CHANNELS", "32"], "MODEL.NECK.OUT_CHANNELS"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32]]"], "MODEL.ANCHOR_GENERATOR.SIZES"),
        (["MODEL.RESNETS.DEPTH", "101"], "res4.6.conv1.weight"),
        (["MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
    ],
)
def test_the_golden_checkpoint_against_configs(tool, golden, tmp_path, capsys, opts, complaint):
    source, output = golden("tiny_clab/checkpoint.pth"), tmp_path / "out.pth"
    status = tool.main([str(source), str(output), "--config-file", str(TINY_CONFIG), *opts])
    captured = capsys.readouterr()
    if complaint is None:
        assert status == 0, captured.err
        assert output.exists()
        return
    assert status == 2
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err
    assert not output.exists()


def test_a_converted_checkpoint_fills_the_model_through_detectron2(tool, golden, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    import clab_d2

    output = tmp_path / "out.pth"
    arguments = [str(golden("tiny_clab/checkpoint.pth")), str(output)]
    assert tool.main([*arguments, "--config-file", str(TINY_CONFIG)]) == 0
    cfg = clab_d2.get_clab_cfg()
    cfg.merge_from_file(str(TINY_CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(output))
    loaded = model.state_dict()
    weights = load_weights_file(output)["model"]
    filled = [name for name in loaded if name in weights]
    assert all(torch.equal(loaded[name], weights[name]) for name in filled)
    rest = {name for name in loaded if name not in weights}
    assert all(name.endswith("num_batches_tracked") for name in rest), rest


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_was_checked_against_a_config_carries_it(tool, golden, tmp_path, suffix):
    """Where the classes are known, too: then the file is enough to detect."""
    output = tmp_path / f"out{suffix}"
    arguments = [str(golden("tiny_clab/checkpoint.pth")), str(output)]
    options = ["--class-order", ",".join(IMAGENET_VID_CLASSES), "--config-file", str(TINY_CONFIG)]
    assert tool.main([*arguments, *options, "DATASETS.TEST", "('imagenet_vid_val',)"]) == 0
    detector = VideoDetector.from_file(output, device="cpu")
    assert detector.class_names == list(IMAGENET_VID_CLASSES)
    assert list(detector.detect([np.zeros((64, 96, 3), np.uint8)]))
    assert tool.main(arguments) == 0
    assert read_card(load_weights_file(output), output) is None, "no config was given"


class Touch:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_runs_only_where_it_is_trusted(tool, tmp_path, resnet18, capsys):
    ran, output = tmp_path / "it_ran", tmp_path / "out.pth"
    torch.save({"state_dict": torch.load(resnet18), "meta": Touch(ran)}, resnet18)
    assert tool.main([str(resnet18), str(output)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--trust" in message
    assert not ran.exists()
    assert not output.exists()
    assert tool.main([str(resnet18), str(output), "--trust"]) == 0
    assert ran.exists()
    assert output.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.pth", "out.pth"], "missing.pth: there is no such file"),
        (
            ["{weights}", "out.pth", "--config-file", "none.yaml"],
            "none.yaml: there is no such config file",
        ),
        (["{weights}", "out.pth", "--config-file", "bad.yaml"], "not valid YAML"),
        (["{weights}", "out.pth", "MODEL.DEVICE", "cpu"], "MODEL.DEVICE: config keys need"),
        (["{weights}", "out.pkl"], "name it .pth"),
        (["{weights}", "out.pth", "--class-order", ","], "names no class"),
    ],
)
def test_mistakes_end_in_one_line(
    tool, tmp_path, resnet18, capsys, monkeypatch, arguments, complaint
):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("MODEL: [")
    arguments = [argument.format(weights=resnet18) for argument in arguments]
    assert tool.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert complaint in message
    assert "Traceback" not in message


def test_it_runs_as_a_script(resnet18, tmp_path):
    import subprocess

    result = subprocess.run(
        [sys.executable, str(TOOL), str(resnet18), str(tmp_path / "out.pth")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "ResNet-18" in result.stdout


def test_safetensors_are_read_and_written(tool, tmp_path, resnet18, capsys):
    state = torch.load(resnet18)
    given = tmp_path / "resnet18.safetensors"
    safetensors.torch.save_file(state, given)
    as_pth, as_safetensors = tmp_path / "a.pth", tmp_path / "b.safetensors"
    assert tool.main([str(resnet18), str(as_pth)]) == 0
    assert tool.main([str(given), str(as_safetensors)]) == 0
    one, other = load_weights_file(as_pth), load_weights_file(as_safetensors)
    assert one["model"].keys() == other["model"].keys()
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name])
    origin = json.loads(other["metadata"]["source"])
    assert origin.items() >= {"kind": one["source"]["kind"], "file": given.name}.items()
    assert f"use it as MODEL.WEIGHTS {as_safetensors}" in capsys.readouterr().out


def test_weights_of_ours_go_from_one_format_to_the_other_and_back(tool, tmp_path, capsys):
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(TINY_CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    card = ModelCard({"MODEL": {"MASK_ON": False}}, ["cat", "dog"])
    VIDCheckpointer(model, str(tmp_path), card=card).save("model_final", iteration=7)
    first, second = tmp_path / "model.safetensors", tmp_path / "again.pth"
    options = ["--config-file", str(TINY_CONFIG)]
    assert tool.main([str(tmp_path / "model_final.pth"), str(first), *options]) == 0
    assert "weights of clab_d2, a detector" in capsys.readouterr().out
    assert tool.main([str(first), str(second)]) == 0
    for path in (first, second):
        other = build_model(cfg)
        VIDCheckpointer(other, purpose="inference").load(str(path))
        for name, value in model.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
        kept = read_card(load_weights_file(path), path)
        assert (kept.config, kept.class_names, kept.iterations) == (card.config, ["cat", "dog"], 8)
    # Without another format there is nothing to do.
    assert tool.main([str(second), str(tmp_path / "third.pth")]) == 2
    assert "give it to MODEL.WEIGHTS as it is" in capsys.readouterr().err
    assert tool.main([str(second), str(first), "--new-classes"]) == 2
    assert "are for weights of other projects" in capsys.readouterr().err
