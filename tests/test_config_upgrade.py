"""Configs and command lines of version 0.1 still mean what they meant."""

from __future__ import annotations

import logging

import pytest

from clab_d2.config_upgrade import upgrade_options, upgrade_tree
from clab_d2.engine import load_config


def test_switches_and_names_of_a_command_line(caplog: pytest.LogCaptureFixture) -> None:
    old = ["MODEL.SELSA.ENABLED", "False", "SOLVER.BASE_LR", "0.1",
           "MODEL.TEMPORAL_ROI_ALIGN.ENABLED", "true", "MODEL.ROI_BOX_HEAD.NAME", "SELSABoxHead",
           "odd"]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        new = upgrade_options(old)
    assert new == ["MODEL.AGGREGATION.BOX_FEATURES", "", "SOLVER.BASE_LR", "0.1",
                   "MODEL.AGGREGATION.ROI_FEATURES", "TemporalRoIAlign",
                   "MODEL.ROI_BOX_HEAD.NAME", "TemporalBoxHead", "odd"]  # fmt: skip
    assert "MODEL.SELSA.ENABLED False is now MODEL.AGGREGATION.BOX_FEATURES ''" in caplog.text
    assert upgrade_options(new) == new


def test_a_yaml_file_of_before_builds_the_same_detector(repo_root, tmp_path) -> None:
    config = tmp_path / "old.yaml"
    config.write_text(
        f"_BASE_: {repo_root}/configs/quick_schedules/clab_quick.yaml\n"
        "MODEL:\n  SELSA: {ENABLED: True, NUM_HEADS: 2}\n"
        "  TEMPORAL_ROI_ALIGN: {ENABLED: False}\n"
        "  PROPOSAL_GENERATOR: {NAME: TemporalRPN}\n"
        "DATASETS: {TRAIN: [], TEST: []}\n"
    )
    cfg = load_config(str(config), ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.AGGREGATION.BOX_FEATURES == "SELSA" and cfg.MODEL.SELSA.NUM_HEADS == 2
    assert cfg.MODEL.AGGREGATION.ROI_FEATURES == ""
    assert cfg.MODEL.PROPOSAL_GENERATOR.NAME == "MMDetectionRPN"


def test_what_is_not_old_stays() -> None:
    tree = {"A": {"B": {}, "C": [1, {"D": 2}]}, "E": None}
    assert upgrade_tree(tree) == tree
