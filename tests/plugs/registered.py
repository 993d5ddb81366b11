"""All that is registered for a plug, the plug-ins of tests/plugins among it.

Importing this registers those, so that they are there when pytest collects the tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

import clab_d2.modeling.plain  # noqa: F401  (registers what tests and benchmark compare with)
from clab_d2 import get_clab_cfg
from clab_d2.engine.plugins import import_plugins

TESTS = Path(__file__).resolve().parents[1]
QUICK = TESTS.parent / "configs" / "quick_schedules" / "clab_quick.yaml"
PLUGINS = sorted((TESTS / "plugins").glob("*.py"))

import_plugins(map(str, PLUGINS))


def ours(registry: Iterable[tuple[str, Any]]) -> list[str]:
    """Names in a registry of Detectron2's that belong to this package or its tests' plug-ins."""
    files = {str(path) for path in PLUGINS}
    return sorted(
        name
        for name, entry in registry
        if entry.__module__.startswith("clab_d2.") or inspect.getfile(entry) in files
    )


#: What makes methods small that are not so by default, and keeps them from fetching weights.
SMALL = [
    *("MODEL.FLOW_GUIDED.FLOW_WEIGHTS", "random", "MODEL.FLOW_GUIDED.FLOW_UPDATES", 2),
    *("MODEL.FLOW_GUIDED.EMBED_DIMS", [16, 16, 32]),
]


def quick_config(*options: Any) -> CfgNode:
    """The config of a tiny CLAB on the CPU, with options changed."""
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(QUICK))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *SMALL, *options])
    return cfg


def by_config(entry: Callable[..., nn.Module], cfg: CfgNode, *arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return entry(cfg, *arguments)


def by_constructor(entry: Any, cfg: CfgNode, *arguments: Any) -> nn.Module:
    """The same by the constructor's own arguments."""
    torch.manual_seed(0)
    return entry(**entry.from_config(cfg, *arguments))


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    left_state, right_state = left.state_dict(), right.state_dict()
    assert left_state.keys() == right_state.keys()
    for name, value in left_state.items():
        torch.testing.assert_close(value, right_state[name], rtol=0, atol=0, equal_nan=True)


def without_gradient(module: nn.Module) -> list[str]:
    """Trained parameters that the backward pass did not reach: DistributedDataParallel ends a
    training in which there are any."""
    return [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
