"""Weights of classification networks, as published, into a detector's backbone."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from clab_d2 import get_clab_cfg
from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.errors import DataError

State = dict[str, Tensor]


def save_pth(path: Path, state: State) -> None:
    torch.save(state, path)


def save_pkl(path: Path, state: State) -> None:
    content = {"model": {n: v.numpy() for n, v in state.items()}, "__author__": "me"}
    path.write_bytes(pickle.dumps({**content, "matching_heuristics": True}))


def save_safetensors(path: Path, state: State) -> None:
    safetensors.torch.save_file({n: v.contiguous() for n, v in state.items()}, path)


SAVE = {".pth": save_pth, ".pkl": save_pkl, ".safetensors": save_safetensors}


@pytest.fixture
def detector(repo_root: Path) -> Callable[..., nn.Module]:
    def make(*overrides: object) -> nn.Module:
        cfg: CfgNode = get_clab_cfg()
        cfg.merge_from_file(str(repo_root / "configs/quick_schedules/faster_rcnn_quick.yaml"))
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.NECK.IN_FEATURE", "res4", *overrides])
        torch.manual_seed(0)
        return build_model(cfg)

    return make


def of_timm(name: str) -> list[str]:
    return [
        "MODEL.BACKBONE.NAME", "build_single_scale_backbone",
        "MODEL.BACKBONE.BOTTOM_UP", "build_timm_backbone", "MODEL.TIMM.NAME", name,
    ]  # fmt: skip


def load(model: nn.Module, path: Path | str, tmp_path: Path) -> nn.Module:
    VIDCheckpointer(model, str(tmp_path / "out"), purpose="train").load(str(path))
    return model


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_timms_weights(detector, tmp_path, name, suffix):
    """Every tensor that the backbone has comes out of the file, and gives timm's own maps."""
    torch.manual_seed(1)
    theirs = timm.create_model(name).eval()
    path = tmp_path / f"weights{suffix}"
    SAVE[suffix](path, theirs.state_dict())
    backbone = load(detector(*of_timm(name)), path, tmp_path).backbone.bottom_up.eval()
    expected = theirs.state_dict()
    for key, value in backbone.net.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    image = torch.rand(1, 3, *theirs.pretrained_cfg["input_size"][1:])
    index = [i for i, info in enumerate(theirs.feature_info) if info["reduction"] == 16][-1]
    with torch.no_grad():
        (theirs_map,) = theirs.forward_intermediates(
            image, indices=[index], intermediates_only=True
        )
        torch.testing.assert_close(backbone(image)["res4"], theirs_map)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_resnet(detector, tmp_path, suffix):
    theirs = torchvision.models.resnet18().eval()
    path = tmp_path / f"resnet18{suffix}"
    SAVE[suffix](path, theirs.state_dict())
    model = load(detector("MODEL.RESNETS.NORM", "BN"), path, tmp_path)
    bottom_up = model.backbone.bottom_up.eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        x = theirs.layer3(theirs.layer2(theirs.layer1(x)))
        torch.testing.assert_close(bottom_up(image)["res4"], x)


def test_torchvisions_resnet_into_timms(detector, tmp_path):
    """The names are the same, whoever trained it."""
    theirs = torchvision.models.resnet18()
    save_pth(tmp_path / "resnet18.pth", theirs.state_dict())
    model = load(detector(*of_timm("resnet18")), tmp_path / "resnet18.pth", tmp_path)
    assert torch.equal(model.backbone.bottom_up.net.conv1.weight, theirs.conv1.weight)


@pytest.mark.parametrize(
    ("builder", "own"),
    [
        ("build_swin_backbone", ["MODEL.SWIN.SIZE", "T"]),
        ("build_vit_backbone", ["MODEL.VIT.SIZE", "Ti"]),
        ("build_regnet_backbone", ["MODEL.REGNET.NAME", "X-200MF", "INPUT.FORMAT", "BGR"]),
    ],
)
def test_networks_of_detectron2(detector, tmp_path, builder, own):
    """Files of the bare network, as Swin's authors, MAE and pycls publish them."""
    options = [
        "MODEL.BACKBONE.NAME", "build_single_scale_backbone", "MODEL.BACKBONE.BOTTOM_UP", builder,
    ]  # fmt: skip
    model, other = detector(*options, *own), detector(*options, *own)
    own = other.backbone.bottom_up.state_dict()
    state = {n: torch.rand_like(v) for n, v in own.items() if v.is_floating_point()}
    head = {"head.weight": torch.zeros(3, 3)}
    key = "model_state" if "regnet" in builder else "model"
    torch.save({key: {**state, **head}}, tmp_path / "bare.pth")
    load(model, tmp_path / "bare.pth", tmp_path)
    loaded = model.backbone.bottom_up.state_dict()
    assert state and all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("builder", "own", "other", "message"),
    [
        ("build_swin_backbone", ["MODEL.SWIN.SIZE", "T"], ["MODEL.SWIN.SIZE", "S"],
         r"layers\.2\.blocks\.6\.\S+ is in the file and not in the model; set MODEL\.SWIN\.SIZE"),
        ("build_swin_backbone", [], ["MODEL.SWIN.WINDOW_SIZE", 4],
         r"relative_position_bias_table has shape \(169, 3\) in the file and"),
        ("build_regnet_backbone", ["INPUT.FORMAT", "BGR", "MODEL.REGNET.NAME", "X-200MF"],
         ["MODEL.REGNET.NAME", "Y-200MF"], r"\.se\.\S+ is in the file.*set MODEL\.REGNET\.NAME"),
        ("build_vit_backbone", ["MODEL.VIT.SIZE", "Ti"], ["MODEL.VIT.SIZE", "S"],
         r"pos_embed has shape .* set MODEL\.VIT\.SIZE"),
    ],
)  # fmt: skip
def test_another_network_is_refused(detector, tmp_path, builder, own, other, message):
    options = [
        "MODEL.BACKBONE.NAME", "build_single_scale_backbone", "MODEL.BACKBONE.BOTTOM_UP", builder,
        "MODEL.BACKBONE.OUT_FEATURES", "['res4']", *own,
    ]  # fmt: skip
    theirs = detector(*options, *other).backbone.bottom_up.state_dict()
    if "WINDOW_SIZE" in str(other):
        theirs = detector(*options).backbone.bottom_up.state_dict()
        options += other
    torch.save(theirs, tmp_path / "theirs.pth")
    with pytest.raises(DataError, match=message):
        load(detector(*options), tmp_path / "theirs.pth", tmp_path)


def test_position_embeddings_are_resized(detector, tmp_path):
    options = [
        "MODEL.BACKBONE.NAME", "build_single_scale_backbone",
        "MODEL.BACKBONE.BOTTOM_UP", "build_vit_backbone", "MODEL.VIT.SIZE", "Ti",
    ]  # fmt: skip
    model = detector(*options)
    state = dict(model.backbone.bottom_up.state_dict())
    # 24 x 24 positions that rise along x, and the class token
    rising = torch.linspace(0, 1, 24).repeat(24, 1).reshape(1, -1, 1).expand(-1, -1, 192)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 192), 7.0), rising], dim=1)
    torch.save(state, tmp_path / "vit.pth")
    load(model, tmp_path / "vit.pth", tmp_path)
    loaded = model.backbone.bottom_up.pos_embed
    assert loaded.shape == (1, 1 + 14 * 14, 192)
    assert torch.all(loaded[:, 0] == 7)
    grid = loaded[0, 1:, 0].reshape(14, 14)
    torch.testing.assert_close(grid, grid[:1].expand(14, 14))
    assert torch.all(grid[0, 1:] > grid[0, :-1])


def test_by_order_only_where_all_shapes_agree(detector, tmp_path):
    """Lite0 by other names, as its package has them; then with two tensors exchanged."""
    torch.manual_seed(2)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = {f"_t{i}.{n.split('.')[-1]}": v for i, (n, v) in enumerate(state.items())}
    torch.save(renamed, tmp_path / "renamed.pth")
    model = load(detector(*of_timm("tf_efficientnet_lite0")), tmp_path / "renamed.pth", tmp_path)
    for name, value in model.backbone.bottom_up.net.state_dict().items():
        assert torch.equal(value, state[name]), name
    names = list(renamed)
    renamed[names[0]], renamed[names[1]] = renamed[names[1]], renamed[names[0]]
    torch.save(renamed, tmp_path / "exchanged.pth")
    with pytest.raises(DataError) as caught:
        load(detector(*of_timm("tf_efficientnet_lite0")), tmp_path / "exchanged.pth", tmp_path)
    line = str(caught.value)
    assert "exchanged.pth: they are no weights of timm's tf_efficientnet_lite0" in line
    assert "of shape (32,) stands where conv_stem.weight of shape (32, 3, 3, 3) should" in line
    assert "set MODEL.TIMM.NAME" in line and "\n" not in line


@pytest.mark.parametrize(("wanted", "given"), [("resnet18", "resnet34"), ("resnet34", "resnet18")])
def test_another_depth_is_refused(detector, tmp_path, wanted, given):
    """A deeper network's names include a shallower one's; a shallower lacks blocks."""
    torch.save(timm.create_model(given).state_dict(), tmp_path / "other.pth")
    messages = {
        "resnet18": "layer1.2.conv1.weight is in the file and not in the model",
        "resnet34": "they are no weights of timm's resnet34",
    }
    with pytest.raises(DataError, match=messages[wanted]):
        load(detector(*of_timm(wanted)), tmp_path / "other.pth", tmp_path)


def test_another_width_is_refused(detector, tmp_path):
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other\.pth.*set MODEL\.TIMM\.NAME"):
        load(detector(*of_timm("test_convnext2")), tmp_path / "other.pth", tmp_path)


def test_a_trained_detector_is_left_alone(detector, tmp_path):
    model, other = (detector(*of_timm("test_resnet")) for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.uniform_()
    torch.save({"model": other.state_dict()}, tmp_path / "trained.pth")
    load(model, tmp_path / "trained.pth", tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
