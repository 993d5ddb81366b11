"""Run what is left of a study: several runs side by side, and on from wherever it was stopped."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from clab_d2.engine.launch import USER_ERRORS
from clab_d2.errors import ConfigError
from clab_d2.io import write_json
from clab_d2.study.declared import DeclaredConfigs
from clab_d2.study.plan import Run
from clab_d2.study.state import (
    State,
    examine,
    iterations_done,
    metrics_files,
    read_record,
)
from clab_d2.study.time_left import Going, duration_text, expected_seconds, seconds_left

LOG_NAME = "study_run.log"
_POLL_S = 0.1
_REPORT_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time.

    Attributes:
        threads: CPU threads of each of its processes.
        gpus: the GPUs that the run sees, as CUDA_VISIBLE_DEVICES names them; None for all.
    """

    threads: int
    gpus: str | None = None

    def environment(self) -> dict[str, str]:
        """What is set for a run."""
        threads = str(self.threads)
        changes = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        return changes if self.gpus is None else {**changes, "CUDA_VISIBLE_DEVICES": self.gpus}


def make_slots(jobs: int, gpus: Sequence[str], threads: int | None, num_gpus: int) -> list[Slot]:
    """Share a machine out.

    Args:
        jobs: runs side by side, where no GPUs are named.
        gpus: ids of GPUs, one run (of ``num_gpus`` GPUs) each; an id that stands twice has two.
        threads: of each process; None shares this process's CPUs out evenly.
        num_gpus: GPUs, or processes, of a run.

    Raises:
        ConfigError: the GPUs are no multiple of ``num_gpus``, or a run would have one twice.
    """
    groups: list[str | None] = [None] * jobs
    if gpus:
        if len(gpus) % num_gpus:
            raise ConfigError(
                f"--gpus names {len(gpus)}, and each run of this study takes {num_gpus} (num_gpus)"
            )
        parts = [gpus[start : start + num_gpus] for start in range(0, len(gpus), num_gpus)]
        if any(len(set(part)) < num_gpus for part in parts):
            raise ConfigError(
                f"--gpus gives a run of {num_gpus} GPUs (num_gpus) one of them twice; order them"
            )
        groups = [",".join(part) for part in parts]
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // (len(groups) * num_gpus))
    return [Slot(threads, group) for group in groups]


@dataclass
class Summary:
    """How a study ended.

    Attributes:
        finished: runs that are finished, those of earlier sessions included.
        failed: run and what is said of it.
        skipped: evaluations of failed trainings.
        signal: that stopped the study; 0 for none.
    """

    finished: list[Run] = field(default_factory=list)
    failed: list[tuple[Run, str]] = field(default_factory=list)
    skipped: list[Run] = field(default_factory=list)
    signal: int = 0


@dataclass
class _Job:
    """A run that is going on."""

    run: Run
    slot: Slot
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int  # where this attempt's output begins
    lock: _Lock
    began: float
    asked_to_end: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Runner:
    """Runs a study's unfinished runs in subprocesses.

    A run is ``command --config-file=... --resume KEY VALUE ... SEED s OUTPUT_DIR ...``, so it goes
    on from its last checkpoint if it has one. Its output goes to ``study_run.log`` in its folder.
    The first SIGINT or SIGTERM is passed on to the runs, which save a checkpoint and end; a second
    one kills them.

    While a run goes on its folder is locked by its own process, whatever becomes of this one. So
    several studies may work in one folder, and where a study was killed but not its runs, the next
    one waits for these instead of starting them again.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        configs: DeclaredConfigs,
        slots: Sequence[Slot],
        command: Sequence[str],
        *,
        flags: Sequence[str] = (),
        declared_hours: Mapping[str, float] | None = None,
        machine: str = "",
        tell: Callable[[str], None] = print,
        show: Callable[[Summary, Sequence[str], float | None], None] | None = None,
        on_finished: Callable[[Summary], None] | None = None,
    ) -> None:
        """
        Args:
            runs: with a folder each, every training before its evaluations.
            configs: of these runs.
            slots: where runs can go on side by side.
            command: the training script, with its interpreter.
            flags: more options for it.
            declared_hours: :attr:`Run.kind` -> hours.
            machine: a name to note with each run; "" for the config's device.
            tell: gets a line at each start and end of a run.
            show: gets what is done, the labels of what is going on, and the seconds left, every
                now and then.
            on_finished: called at the end of a run that is finished.
        """
        self._runs = list(runs)
        self._configs = configs
        self._slots = list(slots)
        self._command = list(command)
        self._flags = list(flags)
        # Those of a run that has the machine, or its GPUs, to itself; here others share them.
        sharing = len(self._slots) / len({slot.gpus for slot in self._slots})
        self._hours = {kind: sharing * hours for kind, hours in (declared_hours or {}).items()}
        self._machine = machine
        self._tell = tell
        self._show = show
        self._on_finished = on_finished
        self._waiting: list[Run] = []
        self._jobs: list[_Job] = []
        self._summary = Summary()
        self._seconds: list[tuple[str, float]] = []
        self._told_elsewhere: set[Path] = set()
        self._times_signalled = 0
        self._next_report = 0.0

    def command_of(self, run: Run) -> list[str]:
        """The command line of a run."""
        return [
            *self._command,
            f"--config-file={run.config}",
            *self._flags,
            "--eval-only" if run.training else "--resume",
            *run.options,
            *("SEED", str(run.seed)),
            *("OUTPUT_DIR", str(run.folder)),
        ]

    def states(self) -> list[tuple[Run, State]]:
        """What is there of each run.

        Raises:
            ConfigError, DataError: a config can't be, or a folder holds a run of another one.
        """
        return [(run, examine(run, self._configs.of(run))) for run in self._runs]

    def expected(self, states: Sequence[tuple[Run, State]]) -> float | None:
        """Seconds that the runs will take that are not finished; None where it isn't known."""
        finished = [run for run, state in states if state is State.FINISHED]
        waiting = [run.kind for run, state in states if state is not State.FINISHED]
        known = expected_seconds(_durations(finished), self._hours)
        return seconds_left(known, waiting, [], len(self._slots))

    def run(self) -> Summary:
        """Run all that is not finished; return when nothing is left to do.

        Raises:
            ConfigError, DataError: as :meth:`states`, before anything is started.
        """
        for run, state in self.states():
            if state is State.FINISHED:
                self._note_finished(run)
            else:
                self._waiting.append(run)
        with self._signals():
            while self._waiting or self._jobs:
                self._collect()
                if not self._times_signalled:
                    self._start()
                elif self._jobs:
                    self._pass_signals_on()
                else:
                    break
                self._report()
                time.sleep(_POLL_S)
        return self._summary

    # ---------------------------------------------------------------- starting

    def _start(self) -> None:
        """Fill the free slots with runs that can begin."""
        finished = {run.folder for run in self._summary.finished}
        failed = {run.folder for run, _ in self._summary.failed}
        for run in list(self._waiting):
            free = [slot for slot in self._slots if all(job.slot is not slot for job in self._jobs)]
            if not free:
                return
            if run.training is None or run.training.folder in finished:
                self._try_start(run, free[0])
            elif run.training.folder in failed:
                self._waiting.remove(run)
                self._summary.skipped.append(run)

    def _try_start(self, run: Run, slot: Slot) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        lock = _Lock.acquire(run.folder / ".lock")
        if lock is None:
            if run.folder not in self._told_elsewhere:
                self._told_elsewhere.add(run.folder)
                self._tell(f"{run.label}: goes on in a process of an earlier or another study")
            return
        self._waiting.remove(run)
        # Another study may have worked on it since.
        try:
            state = examine(run, self._configs.of(run))
        except USER_ERRORS as error:
            lock.release()
            self._fail(run, str(error))
            return
        if state is State.FINISHED:
            lock.release()
            self._finish(run, "finished by another process")
            return
        log = run.folder / LOG_NAME
        command = self.command_of(run)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            start = file.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **slot.environment()},
                # A terminal's Ctrl-C comes to this process alone, which passes it on.
                start_new_session=True,
                pass_fds=[lock.file.fileno()],
            )
        self._jobs.append(_Job(run, slot, process, log, start, lock, time.monotonic()))
        at = iterations_done(run) if run.training is None else 0
        self._tell(f"{run.label}: {f'goes on at iteration {at}' if at else 'started'}")

    # ---------------------------------------------------------------- ending

    def _collect(self) -> None:
        for job in list(self._jobs):
            status = job.process.poll()
            if status is None:
                continue
            self._jobs.remove(job)
            try:
                self._note(job)
                self._judge(job, status)
            finally:
                job.lock.release()

    def _note(self, job: _Job) -> None:
        """Write down how long a run took, over all its attempts."""
        record = read_record(job.run)
        device = self._configs.of(job.run).values["MODEL.DEVICE"]
        record |= {
            "seconds": round(record.get("seconds", 0) + job.seconds, 1),
            "threads": job.slot.threads,
            "machine": self._machine or str(device),
        }
        write_json(job.run.folder / "study_run.json", record)

    def _judge(self, job: _Job, status: int) -> None:
        """Whether a run that has ended is finished, was stopped or failed."""
        run = job.run
        if status == 0:
            reason = self._lack(run)
            if not reason:
                self._finish(run, f"finished in {duration_text(job.seconds)}")
                return
        elif self._summary.signal:
            self._tell(f"{run.label}: stopped")
            return
        elif status < 0:
            reason = f"killed by {signal.Signals(-status).name}"
        else:
            reason = _last_line(job.log, job.log_start) or f"exit status {status}"
        self._fail(run, f"{reason}; its log is {job.log}")

    def _lack(self, run: Run) -> str:
        """What a run that ended well lacks to be finished; "" for nothing."""
        declared = self._configs.of(run)
        try:
            if examine(run, declared) is State.FINISHED:
                return ""
        except USER_ERRORS as error:
            return str(error)
        files = metrics_files(run, declared).values()
        missing = [str(file) for file in files if not file.is_file()]
        return f"ended without {', '.join(missing) or 'its last evaluation'}"

    def _fail(self, run: Run, reason: str) -> None:
        self._summary.failed.append((run, reason))
        self._tell(f"{run.label}: FAILED: {reason}")

    def _finish(self, run: Run, how: str) -> None:
        self._note_finished(run)
        self._tell(f"{run.label}: {how}")
        if self._on_finished:
            self._on_finished(self._summary)

    def _note_finished(self, run: Run) -> None:
        self._summary.finished.append(run)
        self._seconds += _durations([run])

    # ---------------------------------------------------------------- progress and signals

    def _report(self) -> None:
        if self._show is None or time.monotonic() < self._next_report:
            return
        self._next_report = time.monotonic() + _REPORT_S
        going, labels = [], []
        for job in self._jobs:
            done = None
            if job.run.training is None:
                done = iterations_done(job.run) / self._configs.of(job.run).max_iter
            going.append(Going(job.run.kind, job.seconds, done))
            labels.append(job.run.label + (f" {done:.0%}" if done else ""))
        waiting = [run.kind for run in self._waiting]
        known = expected_seconds(self._seconds, self._hours)
        left = seconds_left(known, waiting, going, len(self._slots))
        self._show(self._summary, labels, left)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM instead of ending by them; whatever happens, leave no run."""

        def note(number: int, frame: FrameType | None) -> None:
            self._summary.signal = number
            self._times_signalled += 1

        old = {number: signal.signal(number, note) for number in _SIGNALS}
        try:
            yield
        finally:
            for job in self._jobs:  # none but after an exception
                job.process.terminate()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _pass_signals_on(self) -> None:
        """Ask the runs to end; at a second signal, end them."""
        for job in self._jobs:
            if self._times_signalled > 1:
                os.killpg(job.process.pid, signal.SIGKILL)
            elif not job.asked_to_end:
                # To the one process: train_net passes it on to those of its own.
                job.process.terminate()
                job.asked_to_end = True


@dataclass(frozen=True)
class _Lock:
    """A lock on a file, held as long as this process or one that inherits it lives."""

    file: IO[bytes]

    @classmethod
    def acquire(cls, path: Path) -> _Lock | None:
        """None: another process has it."""
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return cls(file)

    def release(self) -> None:
        # Closing, not unlocking: a process of the run that is still there keeps the lock.
        self.file.close()


def _durations(finished: Iterable[Run]) -> list[tuple[str, float]]:
    """Kind and seconds of the runs of which these are noted."""
    noted = [(run.kind, read_record(run).get("seconds")) for run in finished]
    return [(kind, seconds) for kind, seconds in noted if isinstance(seconds, int | float)]


def _last_line(log: Path, start: int) -> str:
    """The last line that says something, a one-line error of ours before others."""
    with log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def delete_intermediate_checkpoints(run: Run) -> None:
    """Of a finished training, delete all checkpoints but the last."""
    if run.weights.is_file():
        for file in run.folder.glob("model_[0-9]*.pth"):
            file.unlink(missing_ok=True)
