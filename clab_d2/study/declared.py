"""The config that a run is declared to have, and a digest by which an equal one is known."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from detectron2.config import CfgNode

from clab_d2.config import extensions, get_clab_cfg
from clab_d2.engine import load_config
from clab_d2.engine.schedule import scale_schedule
from clab_d2.errors import ConfigError, DataError
from clab_d2.study.plan import Run

#: Keys that change no figure: where a run is, on what, and how often it says so.
IRRELEVANT = frozenset({
    "OUTPUT_DIR", "MODEL.DEVICE", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "VIS_PERIOD",
    "LOG.SERVICES", "LOG.PROJECT", "LOG.PICTURES",
})  # fmt: skip
#: Raised when the default of a config key changes: a key at its default has no part in a digest.
DIGEST_VERSION = 1
_DIGEST_LENGTH = 16
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Declared:
    """The config that a run is declared to have.

    Attributes:
        values: whole key -> value, as YAML reads them.
        datasets: those that are evaluated.
        max_iter: iterations of its training.
        evaluates_midway: whether metrics are written before the training's end, too.
        num_gpus: GPUs (or processes) of the run, by which its schedule is scaled.
    """

    values: Mapping[str, Any]
    datasets: tuple[str, ...]
    max_iter: int
    evaluates_midway: bool
    num_gpus: int = 1

    def digest(self, training: str = "") -> str:
        """What runs of an equal config have in common, whatever file or study declares it.

        Keys that change no figure and the seed are left out, and so are keys at their default:
        those that come with a later version leave the digests of earlier runs as they are.

        Args:
            training: for an evaluation, its training's digest, which stands for its weights.

        Returns:
            The beginning of a SHA-256 sum, in hexadecimal.
        """
        left_out = IRRELEVANT | {"SEED"} | ({"MODEL.WEIGHTS"} if training else set())
        defaults = default_values()
        changed = {
            key: _canonical(value)
            for key, value in self.values.items()
            if key not in left_out and not (key in defaults and defaults[key] == value)
        }
        content = [DIGEST_VERSION, self.num_gpus, training, changed]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


class DeclaredConfigs:
    """The configs of runs, each combination of file and options read once."""

    def __init__(self, num_gpus: int = 1, *, needs_datasets: bool = True) -> None:
        """
        Args:
            num_gpus: GPUs (or processes) of each run.
            needs_datasets: False: the datasets may not be there, as nothing is to be run.
        """
        self._num_gpus = num_gpus
        self._needs_datasets = needs_datasets
        self._read: dict[tuple[str, tuple[str, ...]], Declared] = {}

    def of(self, run: Run) -> Declared:
        """A run's config, read and validated.

        Raises:
            ConfigError, DataError: one line that names the study and the run.
        """
        # A seed makes no other config, and the weights to evaluate may not be there yet.
        options = run.options[:-2] if run.training else run.options
        key = run.config, options
        if key not in self._read:
            try:
                cfg = load_config(run.config, list(options), needs_datasets=self._needs_datasets)
                if cfg.MODEL.TRUST_WEIGHTS:
                    raise ConfigError(
                        "MODEL.TRUST_WEIGHTS would let files of weights run code; leave it False "
                        "in a study, and convert such files by tools/convert_checkpoint.py"
                    )
                self._read[key] = _declared(cfg, self._num_gpus)
            except (ConfigError, DataError) as error:
                place = f"{run.source}: {run.label}" if run.source else run.label
                raise type(error)(f"{place}: {error}") from None
        return self._read[key]

    def digest(self, run: Run) -> str:
        """:meth:`Declared.digest` of a run; its seed has no part in it."""
        return self.of(run).digest(self.digest(run.training) if run.training else "")


def _declared(cfg: CfgNode, num_gpus: int) -> Declared:
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty, so there would be no metrics; name a dataset")
    return Declared(
        values=config_values(cfg.dump()),
        datasets=tuple(cfg.DATASETS.TEST),
        max_iter=scale_schedule(cfg, num_gpus).SOLVER.MAX_ITER,
        evaluates_midway=cfg.TEST.EVAL_PERIOD > 0,
        num_gpus=num_gpus,
    )


def config_values(text: str) -> dict[str, Any]:
    """A config's YAML as whole key -> value.

    Raises:
        ValueError, yaml.YAMLError, RecursionError: it is something else.
    """
    return _leaves(yaml.load(text, _Loader))  # a SafeLoader


def default_values() -> dict[str, Any]:
    """Whole key -> default, of all keys, those of plug-ins included that are imported by now."""
    return _defaults_with(extensions())


@functools.lru_cache(maxsize=4)  # 10 ms a time, and a study asks for each of its runs
def _defaults_with(extended_by: tuple[Callable[[CfgNode], None], ...]) -> dict[str, Any]:
    return config_values(get_clab_cfg().dump())


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ValueError("holds no KEY: VALUE pairs")
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _canonical(value: Any) -> Any:
    """1 and 1.0 are one value of a config."""
    if isinstance(value, list):
        return [_canonical(entry) for entry in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
