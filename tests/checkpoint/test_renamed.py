from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.modeling import build_model

from clab_d2.checkpoint.renamed import RENAMED, rename_old_weights
from clab_d2.config import get_clab_cfg

TABLE = ((r"a\.", "b."), (r"b\.(\d+)\.", r"c.\1."), (r"d\.", "e."))


def test_a_name_passes_through_all_its_renamings() -> None:
    model = ["b.w", "c.0.w", "e.w"]
    weights = {"a.w": 1, "a.0.w": 2, "d.w": 3}
    renamed, names = rename_old_weights(weights, model, TABLE)
    assert renamed == {"b.w": 1, "c.0.w": 2, "e.w": 3}
    assert names == {"a.w": "b.w", "a.0.w": "c.0.w", "d.w": "e.w"}
    assert list(renamed.values()) == [1, 2, 3], "in the file's order"


@pytest.mark.parametrize(
    ("weights", "model", "why"),
    [
        (["a.w"], ["a.w", "b.w"], "the model has the old name"),
        (["a.w"], ["z.w"], "the model does not have the new one"),
        (["a.w", "b.w"], ["b.w"], "the file has both"),
        (["x.a.w"], ["x.b.w"], "the pattern is for the start of a name"),
    ],
)
def test_all_else_keeps_its_name(weights: list[str], model: list[str], why: str) -> None:
    given = {name: index for index, name in enumerate(weights)}
    assert rename_old_weights(given, model, TABLE) == (given, {}), why


def test_the_table_is_of_patterns_for_whole_parts() -> None:
    for pattern, replacement in RENAMED:
        re.compile(pattern)
        assert pattern.endswith(r"\."), pattern
        assert replacement.endswith("."), replacement


def test_every_weight_of_the_version_before_has_its_place(repo_root: Path) -> None:
    """The names of configs/quick_schedules/clab_quick.yaml's model before any renaming."""
    old = (repo_root / "tests/golden/weight_names_before_renaming.txt").read_text().split()
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(repo_root / "configs/quick_schedules/clab_quick.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    today = build_model(cfg).state_dict()
    renamed, _ = rename_old_weights(dict.fromkeys(old), today)
    assert set(renamed) == set(today)
