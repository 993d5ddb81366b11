"""Read a config from YAML and the command line, and fit it to the machine."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY

from clab_d2.config import get_clab_cfg
from clab_d2.config_folder import find_config
from clab_d2.config_upgrade import upgrade_options, upgrade_tree
from clab_d2.data import check_num_classes, register_datasets_from_config
from clab_d2.engine.config_check import validate_config
from clab_d2.errors import ConfigError

logger = logging.getLogger(__name__)


def load_config(
    config_file: str,
    options: list[str],
    num_processes: int = 1,
    *,
    needs_datasets: bool = True,
) -> CfgNode:
    """Read a YAML config and command-line overrides, fit it to the machine, and validate it.

    Without a CUDA device, one process goes to the CPU: ``MODEL.DEVICE`` becomes "cpu" and mixed
    precision is switched off. Several must be asked for with ``MODEL.DEVICE cpu``.
    The datasets of ``DATASETS.VID`` are registered in this process.

    Args:
        config_file: a YAML file; where there is none of that name, a config that comes with the
            package (``clab_d2.model_zoo``).
        options: KEY, VALUE, KEY, VALUE, ...
        num_processes: how many are going to share the work.
        needs_datasets: False leaves the datasets alone, which may not be there.

    Raises:
        ConfigError, DataError: one line on what is wrong, and the remedy.
    """
    config_file = find_config_file(config_file)
    check_yaml(config_file)
    cfg = get_clab_cfg()
    _merge(config_file, functools.partial(_merge_file, cfg), config_file)
    merge_options(cfg, options)
    _choose_device(cfg, num_processes)
    validate_config(cfg)
    cfg.freeze()
    if needs_datasets:
        register_datasets_from_config(cfg)
        check_num_classes(cfg)
    return cfg


def find_config_file(config_file: str) -> str:
    """The path of a config: the file itself or, where there is none, the package's of that name.

    Raises:
        ConfigError: there is neither.
    """
    if not config_file:
        raise ConfigError("no config given; add --config-file, such as configs/MiniVID/clab.yaml")
    if os.path.isfile(config_file):
        return config_file
    try:
        return str(find_config(config_file))
    except ConfigError as error:
        raise ConfigError(f"{config_file}: there is no such config file, and {error}") from None


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Change keys of a config as a command line asks: KEY, VALUE, KEY, VALUE, ...

    Raises:
        ConfigError: one line on the key or value that can't be used.
    """
    _merge("command line", cfg.merge_from_list, upgrade_options(options))


def check_yaml(path: str, leading_here: tuple[str, ...] = ()) -> None:
    """Check that a config and the ``_BASE_`` files under it are YAML of KEY: VALUE pairs.

    Args:
        path: the file.
        leading_here: the files whose ``_BASE_`` it is, one under the other.

    Raises:
        ConfigError: one line that names the file at fault.
    """
    own = os.path.realpath(path)
    if own in leading_here:
        circle = [os.path.basename(p) for p in (*leading_here[leading_here.index(own) :], own)]
        raise ConfigError(
            f"{path}: is its own {BASE_KEY} ({' -> '.join(circle)}); take one of them out"
        )
    bases = _read_yaml(path).get(BASE_KEY, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: {BASE_KEY} is {base!r}; give the path of a YAML file")
        if "://" in base:
            continue  # Detectron2 fetches it
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        check_yaml(base, (*leading_here, own))


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(
            f"{path}: this config can't be read ({error.strerror}); check the path"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({reason}); correct the file") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply for a config; correct the file") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no KEY: VALUE pairs; see the folder configs")
    return content


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    # Detectron2 would otherwise let a YAML file call any Python function.
    loaded = cfg.load_yaml_with_base(config_file, allow_unsafe=False)
    cfg.merge_from_other_cfg(CfgNode(upgrade_tree(loaded)))


def _merge(source: str, merge: Callable[[Any], None], what: Any) -> None:
    """Merge into a config; yacs tells a wrong key by KeyError or by a failed assertion."""
    try:
        merge(what)
    except (RecursionError, MemoryError):  # what Python says of a value nested too deeply
        raise ConfigError(f"{source}: a value is nested too deeply; correct it") from None
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise ConfigError(
            f"{source}: {reason}; our keys are in clab_d2/config.py, a plug-in's "
            "need its --import"
        ) from None


def _choose_device(cfg: CfgNode, num_processes: int) -> None:
    """Check ``MODEL.DEVICE``; where there is no GPU, one process takes the CPU."""
    name = cfg.MODEL.DEVICE
    kind, _, index = name.partition(":")
    # PyTorch counts an index round at 256.
    if kind not in ("cpu", "cuda") or (":" in name and not index.isdecimal()):
        raise ConfigError(f"MODEL.DEVICE is {name!r}; choose cpu or cuda")
    if kind == "cpu":
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= max(gpus, 1):
        raise ConfigError(f"MODEL.DEVICE is {name}, but this machine has {gpus} GPU(s); set cuda")
    if index and num_processes > 1:
        raise ConfigError(
            f"MODEL.DEVICE is {name}, which is one GPU, for {num_processes} processes; set cuda"
        )
    if gpus:
        return
    if num_processes > 1:
        raise ConfigError(
            f"{num_processes} processes need as many GPUs (--num-gpus), and PyTorch finds none on "
            "this machine; add MODEL.DEVICE cpu to run them on the CPU"
        )
    logger.warning("No CUDA device here: running on the CPU (MODEL.DEVICE cpu, no AMP)")
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.AMP.ENABLED = False
