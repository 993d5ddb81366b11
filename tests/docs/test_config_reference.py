"""The site's reference of config keys: complete, and true."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

from clab_d2.config import add_clab_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    path = ROOT / "docs" / "site" / "config_reference.py"
    spec = importlib.util.spec_from_file_location("config_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_key_is_there_with_its_default(reference: ModuleType) -> None:
    theirs = get_cfg()
    ours = theirs.clone()
    add_clab_config(ours)
    before = dict(leaves(theirs))
    added = {key: value for key, value in leaves(ours) if key not in before}
    listed = {key.name: ast.literal_eval(key.default) for key in reference.read_keys()}
    assert {key: listed.get(key) for key in added} == added
    for key in set(listed) - set(added):  # Detectron2's, with another default
        assert before[key] != listed[key]


def test_comments_go_with_their_keys(reference: ModuleType) -> None:
    text = {key.name: key.text for key in reference.read_keys()}
    assert text["TEST.KEY_FRAMES_PER_BATCH"].startswith("Key frames of one video")
    assert text["TEST.OPTIMIZE"].startswith("Fold batch norms")
    assert text["MODEL.SELSA.NUM_HEADS"].startswith("SELSA: attention")
    assert text["MODEL.SWIN.SIZE"].startswith("Detectron2's Swin")
    assert not any("#" in one for one in text.values())
