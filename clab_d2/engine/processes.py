"""Start the processes of a job: Detectron2's way on GPUs, and the same on the CPU."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm


def start_processes(
    function: Callable[..., None],
    args: tuple[Any, ...],
    *,
    device: str,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call ``function(*args)`` in several processes that can talk to each other; wait for them.

    On GPUs this is Detectron2's ``launch``. That one goes by what the machine has: with a GPU in
    it, CPU processes would be refused or given NCCL, which moves nothing between CPUs. A single
    process is this one.

    Args:
        function: a module's function, which the new processes import.
        args: can be pickled.
        device: ``MODEL.DEVICE``.
        num_processes: on each machine.
        num_machines, machine_rank: how many machines there are, and which one this is.
        dist_url: where they meet, ``tcp://HOST:PORT`` of machine 0; "auto" on one machine.
        timeout: how long one waits for another.

    Raises:
        torch.multiprocessing.ProcessRaisedException, ProcessExitedException: one failed; the others
            have been ended.
    """
    world_size = num_processes * num_machines
    if torch.device(device).type != "cpu" or world_size == 1:
        launch(
            function,
            num_processes,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=args,
            timeout=timeout,
        )
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError("several machines need a dist_url that all of them can reach")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    first_rank = machine_rank * num_processes
    torch.multiprocessing.start_processes(
        _cpu_process,
        args=(function, args, first_rank, num_processes, world_size, dist_url, timeout),
        nprocs=num_processes,
    )


def _cpu_process(
    local_rank: int,
    function: Callable[..., None],
    args: tuple[Any, ...],
    first_rank: int,
    num_processes: int,
    world_size: int,
    dist_url: str,
    timeout: timedelta,
) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=first_rank + local_rank,
        timeout=timeout,
    )
    try:
        comm.create_local_process_group(num_processes)
        function(*args)
        comm.synchronize()  # none leaves while another still waits for it
    finally:
        # The groups' threads would otherwise be running when Python ends, which at times aborts the
        # process ("terminate called without an active exception"). Detectron2 holds the local group
        # in a global of its own that nothing else lets go of, and with it the store of all groups.
        torch.distributed.destroy_process_group()
        comm._LOCAL_PROCESS_GROUP = None
        gc.collect()


def _free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
