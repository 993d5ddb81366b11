"""Many videos shared out over the machines of a Ray cluster (optional dependency)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from clab_d2.engine.command_line import USER_ERRORS, one_line
from clab_d2.errors import ConfigError, DataError
from clab_d2.optional import import_optional
from clab_d2.video.detector import VideoDetector
from clab_d2.video.many_videos import DetectionJob


def detect_each_on_ray(
    job: DetectionJob, outputs: Mapping[Path, Path], address: str
) -> Iterator[tuple[Path, str | None]]:
    """:meth:`DetectionJob.detect_each`, as many videos at a time as the cluster has devices.

    There is one worker for each GPU, or where there is none for each CPU, and each loads the model
    once. Workers take the current directory for theirs: all files must have the same paths on
    all machines. What kills a worker counts against the video it had; it is started again.

    Args:
        job, outputs: as there.
        address: of the cluster, as ``ray.init`` takes it: "auto" for the one that this machine is
            part of, "ray://host:10001" for one elsewhere, "local" to start one on this machine.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
        DataError: a worker can't load the model.
    """
    ray = import_optional("ray", "ray", "--ray")
    # Ray would tell its makers of a cluster that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray {address}: no Ray cluster answers ({one_line(error)}); give its address, auto "
            "on one of its machines, or local to start one here"
        ) from None
    try:
        yield from _share_out(ray, job, outputs)
    finally:
        ray.shutdown()


def _share_out(
    ray: ModuleType, job: DetectionJob, outputs: Mapping[Path, Path]
) -> Iterator[tuple[Path, str | None]]:
    resources = ray.cluster_resources()
    num_gpus, num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    worker_class = ray.remote(_Worker).options(
        num_cpus=1, num_gpus=1 if num_gpus else 0, max_restarts=-1
    )
    count = min(num_gpus or num_cpus, len(outputs))
    workers = [worker_class.remote(job, os.getcwd()) for _ in range(count)]
    waiting = iter(outputs.items())
    # What each worker does: loads the model (no video), then detects in a video.
    running = {worker.load.remote(): (worker, None) for worker in workers}
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        worker, video = running.pop(done)
        try:
            failure = ray.get(done)
        except ray.exceptions.RayError as error:
            failure = f"{video or 'loading the model'}: its worker died: {one_line(error)}"
        if video is not None:
            yield video, failure
        elif failure is not None:
            raise DataError(failure)
        following = next(waiting, None)
        if following is not None:
            running[worker.detect.remote(*following)] = (worker, following[0])


class _Worker:
    """A process of the cluster; it builds its detector where it is to be used."""

    def __init__(self, job: DetectionJob, folder: str) -> None:
        self._job = job
        self._folder = folder
        self._detector: VideoDetector | None = None

    def load(self) -> str | None:
        """Build the detector; what went wrong, in a line, or None."""
        try:
            os.chdir(self._folder)
            self._detector = self._job.build_detector()
        except (*USER_ERRORS, OSError) as error:
            return one_line(error)
        return None

    def detect(self, video: Path, output: Path) -> str | None:
        """Detect in a video; what went wrong, in a line, or None."""
        if self._detector is None:  # started again
            failure = self.load()
            if self._detector is None:
                return failure
        return self._job.try_to_detect(self._detector, video, output)
