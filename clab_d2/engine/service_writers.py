"""Losses, metrics and pictures to Weights & Biases and MLflow, as Detectron2's event writers.

Both are optional packages. Where their server is, whether anything is sent, and who one is there
they know from their own environment variables and settings, not from a config, which may be a
stranger's.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from clab_d2.checkpoint.portable_config import config_to_plain
from clab_d2.errors import ConfigError
from clab_d2.io import atomic_write

logger = logging.getLogger(__name__)

#: Losses are medians over so many iterations, as in TensorBoard.
_WINDOW = 20


class ServiceWriter(EventWriter):
    """What writers for such services have in common: which values are new, and which run it is.

    A resumed training goes on in its run: the id is kept in ``OUTPUT_DIR``.

    Args:
        output_dir: ``OUTPUT_DIR``.
        project: what the service files the run under.
        config: as nested plain data.
        resumes: whether a training goes on; else a new run begins.
    """

    #: As in ``LOG.SERVICES``; also the module to import, and the extra's name.
    name: str

    def __init__(
        self, output_dir: str, project: str, config: Mapping[str, Any], resumes: bool
    ) -> None:
        self._last_iteration = -1
        self._failing = False
        id_file = Path(output_dir, f"{self.name}_run_id")
        known = id_file.read_text(encoding="utf-8") if resumes and id_file.is_file() else None
        with _one_line_errors(self.name):
            run_id = self._start(output_dir, project, config, known)
        if run_id != known:
            with atomic_write(id_file) as file:
                file.write(run_id)

    @abstractmethod
    def _start(
        self, output_dir: str, project: str, config: Mapping[str, Any], run_id: str | None
    ) -> str:
        """Begin a run, or go on with the one of an id; returns its id."""

    @abstractmethod
    def _log(self, values: Mapping[str, float], iteration: int) -> None:
        """Send values of one iteration."""

    @abstractmethod
    def _log_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        """See :meth:`log_picture`."""

    def write(self) -> None:
        """Send what is new since the last time."""
        new: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_iteration:
                new[iteration][name] = float(value)
        for iteration in sorted(new):
            with self._training_goes_on():
                self._log(new[iteration], iteration)
            self._last_iteration = iteration

    def log_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        """Send a picture, (H, W, 3) RGB of uint8."""
        with self._training_goes_on():
            self._log_picture(name, picture, iteration)

    @contextmanager
    def _training_goes_on(self) -> Iterator[None]:
        """A service that fails costs what it was to get, not the training; told at the first time,
        and again after it has worked in between."""
        try:
            yield
        except Exception as error:
            if not self._failing:
                logger.warning(
                    "LOG.SERVICES %s: %s; training goes on, and metrics.json has all values",
                    self.name,
                    _reason(error),
                )
            self._failing = True
        else:
            self._failing = False


class WandbWriter(ServiceWriter):
    """To Weights & Biases. ``WANDB_MODE=offline`` keeps the run in ``OUTPUT_DIR/wandb``."""

    name = "wandb"

    def _start(
        self, output_dir: str, project: str, config: Mapping[str, Any], run_id: str | None
    ) -> str:
        import wandb

        self._run = wandb.init(
            project=project,
            name=Path(output_dir).resolve().name,
            id=run_id,  # None: W&B makes one
            resume="allow",
            dir=output_dir,
            config=dict(config),
        )
        # Not W&B's own count of calls: a resumed training may go back behind it.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        return str(self._run.id)

    def _log(self, values: Mapping[str, float], iteration: int) -> None:
        self._run.log({**values, "iteration": iteration})

    def _log_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(picture), "iteration": iteration})

    def close(self) -> None:
        self._run.finish()


class MlflowWriter(ServiceWriter):
    """To MLflow, at ``MLFLOW_TRACKING_URI``."""

    name = "mlflow"

    def _start(
        self, output_dir: str, project: str, config: Mapping[str, Any], run_id: str | None
    ) -> str:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if run_id is None:
            found = self._client.get_experiment_by_name(project)
            experiment = found.experiment_id if found else self._client.create_experiment(project)
            run = self._client.create_run(experiment, run_name=Path(output_dir).resolve().name)
            run_id = run.info.run_id
            self._client.log_dict(run_id, dict(config), "config.json")
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id
        return str(run_id)

    def _log(self, values: Mapping[str, float], iteration: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(_mlflow_name(name), value, now, iteration) for name, value in values.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _log_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        key = _mlflow_name(name)
        self._client.log_image(self._run_id, picture, key=key, step=iteration, synchronous=True)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _mlflow_name(name: str) -> str:
    """A name as MLflow takes it: class names may hold what it refuses."""
    return re.sub(r"[^\w\-./ ]", "_", name)


SERVICES: dict[str, type[ServiceWriter]] = {
    writer.name: writer for writer in (WandbWriter, MlflowWriter)
}


def check_services(names: list[str]) -> None:
    """See that the packages of ``LOG.SERVICES`` are there, before anything is built.

    Raises:
        ConfigError: a service is unknown, or its package isn't installed.
    """
    for name in names:
        if name not in SERVICES:
            raise ConfigError(
                f"LOG.SERVICES has {name!r}; choose of {', '.join(map(repr, SERVICES))}"
            )
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"LOG.SERVICES has {name!r}, whose package is not installed; run "
                f'pip install "clab_d2[{name}]"'
            )


def build_service_writers(cfg: CfgNode, resumes: bool) -> list[ServiceWriter]:
    """The writers of ``LOG.SERVICES``; starts their runs.

    Raises:
        ConfigError: a service can't be reached or refuses.
    """
    config = config_to_plain(cfg)
    writers: list[ServiceWriter] = []
    try:
        for name in cfg.LOG.SERVICES:
            writers.append(SERVICES[name](cfg.OUTPUT_DIR, cfg.LOG.PROJECT, config, resumes))
    except ConfigError:
        # Or their runs would seem to go on, and a next one in this process join them.
        for writer in writers:
            writer.close()
        raise
    return writers


@contextmanager
def _one_line_errors(service: str) -> Iterator[None]:
    """A service that can't be used is told in one line, whatever it raises."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"LOG.SERVICES {service}: {_reason(error)}; {_REMEDIES[service]}, or take it out of "
            "the config"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_REMEDIES = {
    "wandb": "log in (wandb login), or set WANDB_MODE=offline in the environment",
    "mlflow": "set MLFLOW_TRACKING_URI in the environment to a server of yours",
}
