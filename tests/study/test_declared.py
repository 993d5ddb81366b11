"""By what a run's config is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from detectron2.config import CfgNode

from clab_d2 import config
from clab_d2.study.declared import Declared, default_values


def digest(training: str = "", num_gpus: int = 1, **values: Any) -> str:
    whole = {key.replace("__", "."): value for key, value in values.items()}
    declared = Declared({**default_values(), **whole}, ("a",), 9, False)
    return dataclasses.replace(declared, num_gpus=num_gpus).digest(training)


@pytest.mark.parametrize(
    "values",
    [
        {"OUTPUT_DIR": "/elsewhere"},
        {"MODEL__DEVICE": "cpu"},
        {"SOLVER__CHECKPOINT_PERIOD": 7},
        {"SEED": 3},
        {"SOLVER__BASE_LR": default_values()["SOLVER.BASE_LR"]},
    ],
)
def test_what_changes_no_figure_changes_no_digest(values: dict[str, Any]) -> None:
    assert digest(**values) == digest()


@pytest.mark.parametrize(
    "values",
    [
        {"SOLVER__BASE_LR": 0.123},
        {"MODEL__WEIGHTS": "other.pth"},
        {"DATASETS__TEST": ["b"]},
        {"NEW__KEY": False},
        {"num_gpus": 2},
        {"training": "abc"},
    ],
)
def test_all_else_does(values: dict[str, Any]) -> None:
    assert digest(**values) != digest()


def test_whole_numbers_are_numbers() -> None:
    assert digest(NEW__KEY=[1, 2]) == digest(NEW__KEY=[1.0, 2.0]) != digest(NEW__KEY=[True, 2])


def test_a_key_of_a_later_version_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept before is known after."""
    earlier = digest(SOLVER__BASE_LR=0.123)
    later = {**default_values(), "NEW.KEY": 5}
    monkeypatch.setattr("clab_d2.study.declared.default_values", lambda: later)
    now = Declared({**later, "SOLVER.BASE_LR": 0.123}, ("a",), 9, False)
    assert now.digest() == earlier


def test_an_evaluation_goes_by_its_training_instead_of_a_file() -> None:
    files = [digest("abc", MODEL__WEIGHTS=path) for path in ("a.pth", "/b/c.pth")]
    assert files[0] == files[1] != digest("abd", MODEL__WEIGHTS="a.pth")


def test_a_key_of_a_plug_in_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the defaults were asked for before the plug-in was imported."""

    def extend(cfg: CfgNode) -> None:
        cfg.MODEL.OF_A_PLUG_IN = 3

    earlier = digest(SOLVER__BASE_LR=0.123)
    monkeypatch.setattr(config, "_extensions", {"plug-in": extend})
    assert digest(SOLVER__BASE_LR=0.123, MODEL__OF_A_PLUG_IN=3) == earlier
    assert digest(SOLVER__BASE_LR=0.123, MODEL__OF_A_PLUG_IN=4) != earlier
