"""Processes on the CPU, on machines with and without GPUs."""

from __future__ import annotations

import json
import multiprocessing.util
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from clab_d2.engine import processes
from clab_d2.engine.processes import start_processes

PRETEND = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
"""


def note(folder: str) -> None:
    """What this process is, and that it can talk to the others."""
    total = torch.tensor([comm.get_rank() + 1])
    torch.distributed.all_reduce(total)
    comm.synchronize()
    facts = {
        "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "backend": torch.distributed.get_backend(),
        "world": comm.get_world_size(),
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "total": total.item(),
        "gathered": comm.all_gather(comm.get_rank()),
    }
    Path(folder, f"{comm.get_rank()}.json").write_text(json.dumps(facts))


def test_two_on_the_cpu_of_a_machine_with_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detectron2's launch would want two GPUs, and NCCL."""
    # New processes run this first.
    (tmp_path / "sitecustomize.py").write_text(PRETEND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    start_processes(note, (str(tmp_path),), device="cpu", num_processes=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "gpus": 1,
            "backend": "gloo",
            "world": 2,
            "local": [rank, 2],
            "total": 3,
            "gathered": [0, 1],
        }


def note_end(folder: str) -> None:
    """Whether the connection is still up when Python ends; a queue's finalizers run before that."""
    path = Path(folder, f"{comm.get_rank()}.txt")
    multiprocessing.util.Finalize(
        None, lambda: path.write_text(str(torch.distributed.is_initialized())), exitpriority=0
    )


def test_connections_are_closed_before_python_ends(tmp_path: Path) -> None:
    """Threads of theirs that are running then abort the process at times."""
    start_processes(note_end, (str(tmp_path),), device="cpu", num_processes=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["False", "False"]


def test_one_is_this_process() -> None:
    seen: list[int] = []
    start_processes(seen.append, (3,), device="cpu", num_processes=1)
    assert seen == [3]


def test_gpus_are_detectron2s(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "clab_d2.engine.processes.launch",
        lambda function, number, **options: calls.append((number, options["dist_url"])),
    )
    start_processes(note, (), device="cuda", num_processes=2, dist_url="tcp://a:1")
    assert calls == [(2, "tcp://a:1")]


def test_several_machines_need_a_place_to_meet() -> None:
    with pytest.raises(ValueError, match="dist_url"):
        start_processes(note, (), device="cpu", num_processes=1, num_machines=2)


def test_no_thread_is_left_that_could_abort_pythons_end() -> None:
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("threads are told by /proc, which is not here")
    url = f"tcp://127.0.0.1:{processes._free_port()}"
    during: list[str] = []

    def names() -> list[str]:
        return [(task / "comm").read_text() for task in tasks.iterdir()]

    processes._cpu_process(
        0, lambda: during.extend(names()), (), 0, 1, 1, url, timedelta(seconds=60)
    )
    assert any("store" in name or "gloo" in name for name in during)
    assert not any("store" in name or "gloo" in name for name in names())
