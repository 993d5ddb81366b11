"""Run a tool's main function in the processes of a job, and tell mistakes in one line."""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from clab_d2._requirements import check_requirements

check_requirements()  # most tools come in by this door

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing.spawn import ProcessExitedException

from clab_d2.data import register_datasets_from_config
from clab_d2.engine.command_line import (
    EXIT_USER_ERROR,
    USER_ERRORS,
    add_key_value_option,
    exit_status,
    one_line,
    report_mistake,
)
from clab_d2.engine.config_file import find_config_file, load_config
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.engine.processes import start_processes
from clab_d2.errors import ConfigError

logger = logging.getLogger(__name__)

__all__ = [
    "EXIT_USER_ERROR",
    "USER_ERRORS",
    "Main",
    "add_key_value_option",
    "argument_parser",
    "exit_status",
    "load_config",
    "one_line",
    "run",
    "setup_process",
]

Main = Callable[[argparse.Namespace, CfgNode], Any]

# How these messages of Detectron2's begin.
_LONG_LISTS = (
    "Environment info:\n",
    "Contents of args.config_file=",
    "Running with full config:\n",
    "Model:\n",
)


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's options for training and evaluation, and ``--import`` for plug-ins.

    ``--dist-url`` defaults to a free port, so that several jobs can run on one machine.
    """
    parser = default_argument_parser(epilog)
    parser.set_defaults(dist_url="auto")
    add_import_option(parser)
    return parser


def setup_process(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What each process of a job does first: loggers, seeds, datasets, threads."""
    # What Detectron2 calls by an old name works all the same.
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    _keep_long_lists_in_the_file(setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank()))
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="clab_d2")
    logger.info("environment, config and the model's modules are in %s/log.txt", cfg.OUTPUT_DIR)
    register_datasets_from_config(cfg)
    processes = comm.get_local_size()
    if torch.device(cfg.MODEL.DEVICE).type == "cpu" and processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def _keep_long_lists_in_the_file(d2_logger: logging.Logger) -> None:
    """Keep what Detectron2 lists by the hundred lines from the console.

    The logger is set up ahead of ``default_setup``, whose own call, with the same arguments, gives
    the same logger and adds nothing.
    """
    for handler in d2_logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.addFilter(_is_no_long_list)


def _is_no_long_list(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().startswith(_LONG_LISTS)


def run(main: Main, args: argparse.Namespace) -> int:
    """Run ``main(args, cfg)`` in ``--num-gpus`` processes on each of ``--num-machines``.

    With ``MODEL.DEVICE cpu`` these are CPU processes. A mistake of the user's is printed as one
    line; the environment variable ``CLAB_D2_TRACEBACK=1`` shows where it came up.

    Args:
        main: a module's function (processes import it), called after :func:`setup_process`.
        args: of :func:`argument_parser`.

    Returns:
        Exit status: 0, 2 for a mistake of the user's, 128 + signal if a signal stopped the job.
    """
    # A place for the first process with a mistake of the user's to leave its line.
    mistakes = multiprocessing.get_context("spawn").SimpleQueue()
    _train_loop_logger().addFilter(_is_no_user_error)
    spawns = args.num_gpus * args.num_machines > 1
    with _signals_passed_on() if spawns else nullcontext([]) as received:
        try:
            _check_counts(args)
            import_plugins(args.imports)
            args.config_file = find_config_file(args.config_file)  # which is logged, too
            cfg = load_config(args.config_file, args.opts, args.num_gpus * args.num_machines)
            _check_processes(args, cfg)
            _check_output_dir(cfg.OUTPUT_DIR)
            start_processes(
                _process,
                (main, args, cfg, mistakes),
                device=cfg.MODEL.DEVICE,
                num_processes=args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
            )
        except USER_ERRORS as error:
            if _wants_traceback():
                raise
            return report_mistake(one_line(error))
        except ProcessExitedException as error:
            if not mistakes.empty():
                return report_mistake(mistakes.get())
            return 128 - error.exit_code if error.exit_code < 0 else error.exit_code
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except Exception:
            if not mistakes.empty():
                return report_mistake(mistakes.get())
            raise
    return 128 + received[0] if received else 0


def _process(main: Main, args: argparse.Namespace, cfg: CfgNode, mistakes: Any) -> None:
    """One process of a job."""
    if comm.get_world_size() == 1:
        setup_process(cfg, args)
        main(args, cfg)
        return

    def is_no_echo(record: logging.LogRecord) -> bool:
        return not record.exc_info or _wants_traceback() or mistakes.empty()

    for filter_ in (_is_no_user_error, is_no_echo):
        _train_loop_logger().addFilter(filter_)
    try:
        import_plugins(args.imports)  # a new process has none of the launcher's modules
        setup_process(cfg, args)
        main(args, cfg)
    except USER_ERRORS as error:
        if _wants_traceback():
            raise
        mistakes.put(one_line(error))
        sys.exit(EXIT_USER_ERROR)
    except Exception:
        if _wants_traceback() or mistakes.empty():
            raise
        # Another process has told what is wrong and ended, and this one has lost its connection.
        sys.exit(EXIT_USER_ERROR)


def _check_counts(args: argparse.Namespace) -> None:
    if args.num_gpus < 1:
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}; it must be at least 1 (without a GPU, 1 is one CPU "
            "process)"
        )
    if args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--num-machines is {args.num_machines} and --machine-rank {args.machine_rank}; of N "
            "machines the ranks are 0 to N - 1"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ConfigError(
            f"--num-machines is {args.num_machines}: give --dist-url tcp://HOST:PORT of machine 0, "
            "the same on every machine"
        )


def _check_processes(args: argparse.Namespace, cfg: CfgNode) -> None:
    world_size = args.num_gpus * args.num_machines
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    if on_gpu and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}, but this machine has {torch.cuda.device_count()}"
        )
    clips = cfg.SOLVER.IMS_PER_BATCH
    if not args.eval_only and not cfg.SOLVER.REFERENCE_WORLD_SIZE and clips % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {clips} can't be shared out evenly to {world_size} processes; "
            f"set it to a multiple of {world_size}"
        )


def _check_output_dir(path: str) -> None:
    """Make ``OUTPUT_DIR``, and see that files can be written to it."""
    try:
        os.makedirs(path or ".", exist_ok=True)
        with tempfile.TemporaryFile(dir=path or "."):
            pass
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR {path}: nothing can be written there ({error.strerror}); name a folder "
            "of yours"
        ) from None


@contextmanager
def _signals_passed_on() -> Iterator[list[int]]:
    """While several processes work, pass SIGINT and SIGTERM on to them and wait for their end."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        children = multiprocessing.active_children()
        if not children:
            signal.signal(number, old[number])
            os.kill(os.getpid(), number)
            return
        received.append(number)
        for child in children:
            child.terminate()

    old = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _wants_traceback() -> bool:
    return os.environ.get("CLAB_D2_TRACEBACK", "") not in ("", "0")


def _train_loop_logger() -> logging.Logger:
    return logging.getLogger("detectron2.engine.train_loop")


def _is_no_user_error(record: logging.LogRecord) -> bool:
    """Keep Detectron2's trainer from logging the traceback of what is told in one line."""
    error = record.exc_info[1] if record.exc_info else None
    return _wants_traceback() or not isinstance(error, (*USER_ERRORS, FloatingPointError))
