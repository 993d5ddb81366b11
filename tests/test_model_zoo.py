"""Configs by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from clab_d2 import model_zoo
from clab_d2.engine import load_config
from clab_d2.errors import ConfigError

CONFIG = "ImageNetVID/clab_R_101_DC5.yaml"


def test_list_has_every_config_that_is_no_base(repo_root: Path) -> None:
    names = model_zoo.list_configs()
    assert CONFIG in names
    for name in names:
        assert model_zoo.get_config_file(name) == str(repo_root / "configs" / name)
    assert not [name for name in names if "Base-" in name]


@pytest.mark.parametrize("name", [CONFIG, f"configs/{CONFIG}", CONFIG.removesuffix(".yaml")])
def test_config_can_be_changed(name: str) -> None:
    cfg = model_zoo.get_config(name, ["SOLVER.MAX_ITER", "7"])
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.CONTRASTIVE.ENABLED) == (101, True)
    assert cfg.SOLVER.MAX_ITER == 7
    cfg.SOLVER.MAX_ITER = 8


def test_bases_are_found_too() -> None:
    assert model_zoo.get_config_file("Base-RCNN-DC5.yaml").endswith("Base-RCNN-DC5.yaml")


@pytest.mark.parametrize(
    "name",
    ["ImageNetVID/clab_R_102_DC5.yaml", "", "configs", "../setup.py", "/etc/passwd", "MiniVID"],
)
def test_unknown_name_gives_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        model_zoo.get_config(name)
    message = str(error.value)
    assert "there is no config" in message and "\n" not in message


def test_similar_names_are_told() -> None:
    with pytest.raises(ConfigError, match=r"similar ones: .*ImageNetVID/clab_R_101_DC5\.yaml"):
        model_zoo.get_config_file("ImageNetVID/clab_R_102_DC5.yaml")


def test_tools_take_a_name_where_no_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (CONFIG, f"configs/{CONFIG}"):
        assert load_config(name, [], needs_datasets=False).MODEL.RESNETS.DEPTH == 101
    base = model_zoo.get_config_file(CONFIG)
    mine = tmp_path / "ImageNetVID" / "clab_R_101_DC5.yaml"
    mine.parent.mkdir()
    mine.write_text(f"_BASE_: {base}\nSOLVER: {{MAX_ITER: 3}}\n")
    assert load_config(CONFIG, [], needs_datasets=False).SOLVER.MAX_ITER == 3
