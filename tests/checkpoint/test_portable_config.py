from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from clab_d2 import config, extend_config, get_clab_cfg
from clab_d2.checkpoint.portable_config import config_from_plain, config_to_plain
from clab_d2.errors import DataError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("name", ALL)
def test_every_config_comes_back_as_far_as_detection_goes(name: str) -> None:
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    back = config_from_plain(json.loads(json.dumps(config_to_plain(cfg))), "w.pth")
    left_alone = get_clab_cfg()
    for tree in (cfg, back):
        tree.MODEL.WEIGHTS = tree.MODEL.FLOW_GUIDED.FLOW_WEIGHTS = ""
        tree.MODEL.CONTRASTIVE = left_alone.MODEL.CONTRASTIVE
        tree.INPUT.REFERENCES = left_alone.INPUT.REFERENCES
        tree.INPUT.MIN_SIZE_TRAIN, tree.INPUT.MAX_SIZE_TRAIN = (), 0
        tree.TEST.EVAL_PERIOD = 0
    for section in ("MODEL", "INPUT", "TEST"):
        assert back[section] == cfg[section]
    assert back.SOLVER == left_alone.SOLVER
    assert back.DATASETS == left_alone.DATASETS


def test_nothing_tells_of_the_machine() -> None:
    cfg = get_clab_cfg()
    cfg.DATASETS.VID = [["mine", "/home/me/secret.json", "/home/me/frames"]]
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = ("/home/me/p.pkl",)
    cfg.OUTPUT_DIR = "/home/me/out"
    cfg.MODEL.WEIGHTS = "/home/me/w.pth"
    text = json.dumps(config_to_plain(cfg))
    assert "/home" not in text
    plain = json.loads(text)
    assert plain["SOLVER"]["BASE_LR"] == cfg.SOLVER.BASE_LR, "a record of the training"
    assert plain["MODEL"]["RPN"]["BBOX_REG_WEIGHTS"] == [1.0] * 4, "numbers are no place"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.WEIGHTS", "http://evil.example/w.pkl"),
        ("MODEL.TRUST_WEIGHTS", True),
        ("MODEL.DEVICE", "cuda:7"),
        ("MODEL.CONTRASTIVE.ENABLED", True),
        ("DATASETS.VID", [["x", "/etc/passwd", "/"]]),
        ("DATASETS.TRAIN", ["x"]),
        ("OUTPUT_DIR", "/tmp/x"),
        ("_BASE_", "/etc/passwd"),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 1, 1]]),
    ],
)
def test_what_only_the_user_decides_is_passed_over(key: str, value: Any) -> None:
    assert config_from_plain(nested(key, value), "w.pth") == config_from_plain({}, "w.pth")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.NEVER_HEARD_OF", 1, "'MODEL.NEVER_HEARD_OF' is no key here; import the plug-in"),
        ("MODEL._BASE_", "x.yaml", "no key here"),
        ("MODEL.RESNETS", 5, "MODEL.RESNETS is no section"),
        ("MODEL", [], "MODEL is no section"),
        ("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.DEPTH is a str"),
        ("MODEL.RESNETS.DEPTH", True, "MODEL.RESNETS.DEPTH is a bool"),
        ("MODEL.RESNETS.DEPTH", 50.0, "MODEL.RESNETS.DEPTH is a float"),
        ("MODEL.RESNETS.DEPTH", None, "MODEL.RESNETS.DEPTH is a NoneType"),
        ("MODEL.RESNETS.OUT_FEATURES", "res4", "OUT_FEATURES is no list"),
        ("MODEL.RESNETS.OUT_FEATURES", [3], "OUT_FEATURES is a int"),
        ("MODEL.RESNETS.OUT_FEATURES", ["../../x"], "'../../x', which is no name"),
        ("MODEL.PIXEL_MEAN", [{}], "PIXEL_MEAN is a dict"),
        ("MODEL.PIXEL_MEAN", [[[[[[[1.0]]]]]]], "PIXEL_MEAN is a list"),
        ("MODEL.PIXEL_MEAN", [1.0] * 10_001, "10001 entries"),
        ("MODEL.PIXEL_STD", [float("nan")], "nan, which is out of range"),
        ("MODEL.BACKBONE.NAME", "https://evil.example/net", "no name of a part"),
        ("MODEL.BACKBONE.NAME", "/etc/passwd", "no name of a part"),
        ("MODEL.BACKBONE.NAME", ".hidden", "no name of a part"),
        ("MODEL.BACKBONE.NAME", "a(b)", "no name of a part"),
        ("MODEL.BACKBONE.NAME", "x" * 201, "no name of a part"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 10**9, "1e+09, which is out of range"),
        ("INPUT.MIN_SIZE_TEST", 10**5, "100000, which is out of range"),
        ("TEST.KEY_FRAMES_PER_BATCH", 10**5, "100000, which is out of range"),
    ],
)
def test_what_no_training_wrote_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        config_from_plain(nested(key, value), "w.pth")
    assert str(caught.value).startswith("w.pth: of the config in it, ")
    assert message in str(caught.value)


def test_trees_of_another_kind_are_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = {"A": deep}
    for plain in ({"MODEL": deep}, {"MODEL": {"A": 3, "A.B": 4}}, {"MODEL": {3: 4}}):
        with pytest.raises(DataError, match=r"w\.pth: "):
            config_from_plain(plain, "w.pth")
    while isinstance(deep, dict):  # Python would recurse to take it apart
        deep = deep.pop("A")


def test_a_plug_ins_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_extensions", {})

    own = {"FLOW_WEIGHTS": "own", "LABELS_FILE": "", "PRETRAINED": False}

    @extend_config
    def add_keys(cfg: CfgNode) -> None:
        cfg.MODEL.MINE = CfgNode({"RATE": 0.5, **own})

    cfg = get_clab_cfg()
    cfg.MODEL.MINE.RATE = 2.0
    cfg.MODEL.MINE.LABELS_FILE = "/home/me/labels.txt"
    plain = config_to_plain(cfg)
    assert plain["MODEL"]["MINE"] == {"RATE": 2.0}
    theirs = {"FLOW_WEIGHTS": "http://x", "LABELS_FILE": "/etc/passwd", "PRETRAINED": True}
    plain["MODEL"]["MINE"] |= theirs
    assert {"RATE": 2.0, **own} == config_from_plain(plain, "w.pth").MODEL.MINE
    monkeypatch.setattr(config, "_extensions", {})
    with pytest.raises(DataError, match=r"'MODEL\.MINE' is no key here; .* with --import"):
        config_from_plain(plain, "w.pth")
