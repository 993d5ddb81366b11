"""Keys and values of configs of earlier versions, given the form of today's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

# Switches of version 0.1 -> the key that names the method now, and the name that True stood for.
_SWITCHES = {
    "MODEL.SELSA.ENABLED": ("MODEL.AGGREGATION.BOX_FEATURES", "SELSA"),
    "MODEL.TEMPORAL_ROI_ALIGN.ENABLED": ("MODEL.AGGREGATION.ROI_FEATURES", "TemporalRoIAlign"),
}
# Names of registered parts that were changed, by the key that names the part.
_NAMES = {
    "MODEL.PROPOSAL_GENERATOR.NAME": {"TemporalRPN": "MMDetectionRPN"},
    "MODEL.ROI_BOX_HEAD.NAME": {"SELSABoxHead": "TemporalBoxHead"},
}


def upgrade_options(options: Sequence[str]) -> list[str]:
    """Upgrade ``KEY VALUE`` pairs of a command line; what isn't old stays as it is."""
    upgraded = list(options)
    for index in range(0, len(upgraded) - 1, 2):
        upgraded[index : index + 2] = _upgraded(upgraded[index], upgraded[index + 1])
    return upgraded


def upgrade_tree(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade the nested keys of a YAML file, its bases merged; what isn't old stays as it is."""
    upgraded: dict[str, Any] = {}
    for key, value in _leaves(loaded):
        new_key, new_value = _upgraded(key, value)
        *parents, name = new_key.split(".")
        node = upgraded
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = new_value
    return upgraded


def _leaves(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            leaves += _leaves(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def _upgraded(key: str, value: Any) -> tuple[str, Any]:
    """A key and its value in today's form; says so in the log where they were old."""
    if key in _SWITCHES:
        new, name = _SWITCHES[key]
        result = new, name if str(value).strip().lower() in ("true", "1") else ""
    elif isinstance(value, str) and value in _NAMES.get(key, {}):
        result = key, _NAMES[key][value]
    else:
        return key, value
    logger.warning("%s %s is now %s %r; please change it", key, value, *result)
    return result
