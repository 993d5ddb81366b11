from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import CfgNode

from clab_d2 import get_clab_cfg


@pytest.fixture
def config(repo_root):
    def load(name: str, *overrides: Any) -> CfgNode:
        cfg = get_clab_cfg()
        cfg.merge_from_file(str(repo_root / f"configs/quick_schedules/{name}.yaml"))
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
        return cfg

    return load
