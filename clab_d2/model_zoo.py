"""The configs that come with the package, by name: from a checkout and installed alike.

A name is a config's path below the folder ``configs``, such as
``"ImageNetVID/clab_R_101_DC5.yaml"``.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from clab_d2.config_folder import find_config, list_configs
from clab_d2.engine.config_file import load_config

__all__ = ["get_config", "get_config_file", "list_configs"]


def get_config_file(name: str) -> str:
    """The path of a config.

    Args:
        name: such as ``"ImageNetVID/clab_R_101_DC5.yaml"``; ``".yaml"`` may be left out.

    Raises:
        ConfigError: there is none of that name; names the most similar ones.
    """
    return str(find_config(name))


def get_config(name: str, options: Sequence[str] = ()) -> CfgNode:
    """A config, fit to this machine: ``MODEL.DEVICE`` is "cpu" where there is no GPU.

    Its datasets are not looked at, so they need not be there.

    Args:
        name: as for :func:`get_config_file`.
        options: KEY, VALUE, KEY, VALUE, ... to change.

    Returns:
        A config that may be changed further (it is not frozen).

    Raises:
        ConfigError: there is none of that name, or the options don't suit it.
    """
    cfg = load_config(get_config_file(name), list(options), needs_datasets=False)
    cfg.defrost()
    return cfg
