"""A config as plain data inside a model's file, and back, whoever wrote that file.

What comes out of a file is data: of the sections that inference needs only the keys that this
version (or an imported plug-in) has, with values of the default's type and of bearable size, are
taken over. Nothing in it can name a file, a folder, an address or code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode

from clab_d2.config import get_clab_cfg
from clab_d2.config_upgrade import upgrade_tree
from clab_d2.errors import DataError

# What decides how a trained model detects. All else in a file is a record of its training.
_SECTIONS = ("MODEL", "INPUT", "TEST")
_BRANCH = "MODEL.CONTRASTIVE"
# Parts of these that only a training uses, or the machine decides, or the user.
_NOT_TAKEN = (
    _BRANCH,
    "MODEL.DEVICE",
    "MODEL.TRUST_WEIGHTS",
    "INPUT.REFERENCES",
    "INPUT.CROP",
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TRAIN",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.PRECISE_BN",
)
# Names of keys whose text says where something lies, or whose switch has something fetched. They
# keep their defaults.
_PLACE = re.compile(
    r"(^|_)(WEIGHTS?|FILES?|PATHS?|DIRS?|FOLDERS?|ROOTS?|URLS?|CHECKPOINTS?|MODULES?|"
    r"IMPORTS?|VID)(_|$)"
)
_FETCHES = re.compile(r"(^|_)(PRETRAINED|DOWNLOAD)(_|$)")
# Names of parts and methods; neither a path nor an address is among them.
_NAME = re.compile(r"(?!\.)[\w.+\- ]{0,200}")
_MOST_NUMBERS = 10_000
# Detectors have thousands of channels, proposals and pixels; more could only fill the memory.
_LARGEST = {"MODEL": 1e6, "INPUT": 8192, "TEST": 8192}


def config_to_plain(cfg: CfgNode) -> dict[str, Any]:
    """All of a config but where things lie on this machine, as nested dicts, lists and scalars."""
    return {
        name: config_to_plain(value) if isinstance(value, CfgNode) else _as_lists(value)
        for name, value in cfg.items()
        if not _is_place(name, value)
    }


def config_from_plain(
    plain: Mapping[str, Any], source: str, with_branch: bool = False
) -> CfgNode:
    """The config of a model's file, for inference.

    Args:
        plain: as :func:`config_to_plain` gives it, or whatever a stranger wrote instead.
        source: the file, for messages.
        with_branch: also take over the contrastive branch, which the file has weights for. What it
            remembers of a training is none of inference's.

    Returns:
        This version's defaults, with the file's values in the sections MODEL, INPUT and TEST.

    Raises:
        DataError: one line that names the key, where one is unknown or its value is of another
            type, too large, or no name.
    """
    taken = {section: plain[section] for section in _SECTIONS if section in plain}
    cfg = get_clab_cfg()
    try:
        left_out = [key for key in _NOT_TAKEN if key != _BRANCH or not with_branch]
        _take_over(cfg, upgrade_tree(taken), "", (*left_out, f"{_BRANCH}.MEMORY_SIZE"))
    except _Refused as refused:
        raise DataError(f"{source}: of the config in it, {refused}") from None
    except (AttributeError, RecursionError, TypeError):  # a tree of another kind
        raise DataError(f"{source}: the config in it is damaged; get the file again") from None
    # The file brings all weights; a part that lacks its own is told, and fetches none.
    cfg.MODEL.FLOW_GUIDED.FLOW_WEIGHTS = "random"
    return cfg


class _Refused(Exception):
    """A key, what is wrong with it, and the remedy."""


def _take_over(node: CfgNode, plain: Any, prefix: str, left_out: Collection[str]) -> None:
    if not isinstance(plain, Mapping):
        raise _Refused(f"{prefix[:-1]} is no section; get the file again from its source")
    for name, value in plain.items():
        key = f"{prefix}{name}"
        if any(key == other or key.startswith(f"{other}.") for other in left_out):
            continue
        if name not in node:
            raise _Refused(
                f"{str(key)[:100]!r} is no key here; import the plug-in that adds it with "
                "--import, or take the version of clab_d2 that wrote the file"
            )
        if isinstance(node[name], CfgNode):
            _take_over(node[name], value, f"{key}.", left_out)
        elif not _is_place(name, node[name]):
            node[name] = _checked(key, node[name], value)


def _is_place(name: str, value: Any) -> bool:
    """Whether a key says where something lies; numbers (as BBOX_REG_WEIGHTS has) don't."""
    if isinstance(value, CfgNode):
        return False
    texts = all(leaf is None or isinstance(leaf, str) for leaf in _leaves(value))
    return bool(_FETCHES.search(name)) or (bool(_PLACE.search(name)) and texts)


def _checked(key: str, default: Any, value: Any) -> Any:
    """A value of the default's type."""
    if isinstance(default, list | tuple):
        if not isinstance(value, list | tuple):
            raise _Refused(f"{key} is no list; get the file again from its source")
        leaves = list(_leaves(value))
        if len(leaves) > _MOST_NUMBERS:
            raise _Refused(f"{key} has {len(leaves)} entries; no detector needs so many")
        examples = list(_leaves(default))
        for leaf in leaves:
            _check_scalar(key, examples[0] if examples else None, leaf)
        return _like(default, value)
    _check_scalar(key, default, value)
    return float(value) if type(default) is float else value


def _check_scalar(key: str, default: Any, value: Any) -> None:
    kinds: tuple[type, ...] = (bool, int, float, str)
    if type(default) in (int, float):
        kinds = (int, float) if isinstance(default, float) else (int,)
    elif default is not None:
        kinds = (type(default),)
    if type(value) not in kinds and not (value is None and default is None):
        raise _Refused(f"{key} is a {type(value).__name__}; get the file again from its source")
    if isinstance(value, str) and not _NAME.fullmatch(value):
        raise _Refused(f"{key} is {value[:100]!r}, which is no name of a part or method")
    largest = _LARGEST[key.partition(".")[0]]
    if type(value) in (int, float) and not (math.isfinite(value) and abs(value) <= largest):
        raise _Refused(f"{key} is {value:g}, which is out of range; no detector needs it")


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    if not isinstance(value, list | tuple):
        yield value
    elif depth < 5:
        for part in value:
            yield from _leaves(part, depth + 1)
    else:
        yield value  # no scalar, which is told


def _like(default: Any, value: Any) -> Any:
    """Lists as the tuples that the default has in their place, also within one another."""
    if not isinstance(value, list | tuple):
        return value
    inner = default[0] if isinstance(default, list | tuple) and default else None
    kind = type(default) if isinstance(default, list | tuple) else list
    return kind(_like(inner, part) for part in value)


def _as_lists(value: Any) -> Any:
    return [_as_lists(part) for part in value] if isinstance(value, list | tuple) else value
