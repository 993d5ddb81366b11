"""Losses and metrics to services: what is new, in which run; the real packages if installed."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.utils.events import EventStorage

from clab_d2.config import get_clab_cfg
from clab_d2.engine import service_writers
from clab_d2.engine.service_writers import (
    ServiceWriter,
    build_service_writers,
    check_services,
)
from clab_d2.errors import ConfigError


class Recorder(ServiceWriter):
    """A service in this process."""

    name = "recorder"

    def _start(
        self, output_dir: str, project: str, config: Mapping[str, Any], run_id: str | None
    ) -> str:
        self.was_known = run_id is not None
        self.sent: list[tuple[int, dict[str, float]]] = []
        return run_id or f"run of {project}"

    def _log(self, values: Mapping[str, float], iteration: int) -> None:
        self.sent.append((iteration, dict(values)))

    def _log_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        raise ConnectionError("no\nroute")


def test_each_value_is_sent_once_with_its_iteration(tmp_path: Path) -> None:
    writer = Recorder(str(tmp_path), "p", {}, resumes=False)
    with EventStorage(0) as storage:
        storage.put_scalar("loss", 4.0, smoothing_hint=False)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("loss", 2.0, smoothing_hint=False)
        storage.step()
        storage.put_scalar("lr", 0.5, smoothing_hint=False)
        writer.write()
    assert writer.sent == [(0, {"loss": 4.0}), (1, {"loss": 2.0}), (2, {"lr": 0.5})]


def test_losses_are_smoothed_as_in_tensorboard(tmp_path: Path) -> None:
    writer = Recorder(str(tmp_path), "p", {}, resumes=False)
    with EventStorage(0) as storage:
        for value in (1.0, 2.0, 30.0):
            storage.put_scalar("loss", value)
            storage.step()
        writer.write()
    assert writer.sent == [(2, {"loss": 2.0})]


def test_a_resumed_training_goes_on_in_its_run(tmp_path: Path) -> None:
    assert not Recorder(str(tmp_path), "first", {}, resumes=True).was_known
    assert Recorder(str(tmp_path), "other", {}, resumes=True).was_known
    assert (tmp_path / "recorder_run_id").read_text() == "run of first"
    assert not Recorder(str(tmp_path), "third", {}, resumes=False).was_known
    assert (tmp_path / "recorder_run_id").read_text() == "run of third"


def test_off_by_default(tmp_path: Path) -> None:
    cfg = get_clab_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    assert build_service_writers(cfg, resumes=False) == []
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_missing_services_give_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"LOG.SERVICES has 'comet'; choose of 'wandb', 'mlflow'"):
        check_services(["comet"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in service_writers.SERVICES:
        with pytest.raises(ConfigError, match=rf'pip install "clab_d2\[{name}\]"'):
            check_services([name])


def test_a_service_that_refuses_gives_one_line(tmp_path: Path) -> None:
    class Refusing(Recorder):
        name = "wandb"

        def _start(self, *args: Any, **kwargs: Any) -> str:
            raise RuntimeError("no\nkey")

    with pytest.raises(ConfigError, match=r"LOG.SERVICES wandb: no key; log in .*WANDB_MODE"):
        Refusing(str(tmp_path), "p", {}, resumes=False)
    assert list(tmp_path.iterdir()) == []


def test_services_begun_are_ended_where_another_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Closing(Recorder):
        def close(self) -> None:
            closed.append(self)

    class Refusing(Recorder):
        name = "mlflow"

        def _start(self, *args: Any, **kwargs: Any) -> str:
            raise RuntimeError("no server")

    monkeypatch.setattr(service_writers, "SERVICES", {"first": Closing, "mlflow": Refusing})
    cfg = get_clab_cfg()
    cfg.OUTPUT_DIR, cfg.LOG.SERVICES = str(tmp_path), ["first", "mlflow"]
    with pytest.raises(ConfigError, match=r"LOG.SERVICES mlflow: no server"):
        build_service_writers(cfg, resumes=False)
    assert len(closed) == 1


def test_a_service_that_fails_midway_costs_its_values_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Recorder):
        def _log(self, values: Mapping[str, float], iteration: int) -> None:
            if iteration in (1, 2, 4):
                raise ConnectionError("no\nroute")
            super()._log(values, iteration)

    writer = Failing(str(tmp_path), "p", {}, resumes=False)
    with caplog.at_level(logging.WARNING), EventStorage(0) as storage:
        for iteration in range(5):
            storage.put_scalar("loss", float(iteration), smoothing_hint=False)
            writer.write()
            storage.step()
        writer.log_picture("detections", np.zeros((2, 2, 3), np.uint8), 4)
    assert [iteration for iteration, _ in writer.sent] == [0, 3]
    said = "LOG.SERVICES recorder: no route; training goes on, and metrics.json has all values"
    assert [record.getMessage() for record in caplog.records] == [said] * 2


@pytest.mark.parametrize(
    ("name", "taken"),
    [("vid/AP50-fast", "vid/AP50-fast"), ("AP50-car (red)", "AP50-car _red_"), ("a:b", "a_b")],
)
def test_names_as_mlflow_takes_them(name: str, taken: str) -> None:
    assert service_writers._mlflow_name(name) == taken


def config_for(service: str, output: Path) -> Any:
    cfg = get_clab_cfg()
    cfg.OUTPUT_DIR = str(output)
    cfg.LOG.SERVICES = [service]
    output.mkdir(exist_ok=True)
    return cfg


def log_one_loss(cfg: Any, iteration: int, resumes: bool) -> None:
    (writer,) = build_service_writers(cfg, resumes)
    with EventStorage(iteration) as storage:
        storage.put_scalar("total_loss", float(iteration))
        writer.write()
    writer.log_picture("detections/mine/7", np.full((4, 6, 3), 9, np.uint8), iteration)
    writer.close()


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'runs'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    cfg = config_for("mlflow", tmp_path / "out")
    log_one_loss(cfg, 3, resumes=False)
    log_one_loss(cfg, 5, resumes=True)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("clab_d2")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "out" and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "total_loss")
    assert [(metric.step, metric.value) for metric in history] == [(3, 3.0), (5, 5.0)]
    pictures = [file.name for file in tmp_path.rglob("*.png")]
    assert {re.search(r"mine.*step.(\d)", name)[1] for name in pictures} == {"3", "5"}
    files = list(tmp_path.rglob("config.json"))
    assert json.loads(files[0].read_text())["LOG"]["PROJECT"] == "clab_d2"


def test_mlflow_without_a_server_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(ConfigError, match=r"LOG.SERVICES mlflow: .*MLFLOW_TRACKING_URI"):
        build_service_writers(config_for("mlflow", tmp_path / "out"), resumes=False)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = config_for("wandb", tmp_path / "out")
    try:
        log_one_loss(cfg, 3, resumes=False)
        run_id = (tmp_path / "out" / "wandb_run_id").read_text()
        log_one_loss(cfg, 5, resumes=True)
    finally:
        logging.getLogger("wandb").handlers.clear()
    assert (tmp_path / "out" / "wandb_run_id").read_text() == run_id
    runs = list((tmp_path / "out" / "wandb").glob("offline-run-*"))
    assert runs and all(run.name.endswith(f"-{run_id}") for run in runs)
    kept = b"".join(file.read_bytes() for run in runs for file in run.glob("*.wandb"))
    assert kept.count(b"total_loss") >= 2
    assert all(list(run.rglob("files/media/images/detections/mine/*.png")) for run in runs)
