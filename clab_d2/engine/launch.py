"""Start a tool's jobs, on GPUs or CPU processes, and tell a user's mistakes in one line."""

from __future__ import annotations

import argparse
import functools
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing.spawn import ProcessExitedException

from clab_d2 import get_clab_cfg
from clab_d2.data import check_num_classes, register_datasets_from_config
from clab_d2.engine.config_check import validate_config
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

USER_ERRORS = (ConfigError, DataError)
EXIT_USER_ERROR = 2
Main = Callable[[argparse.Namespace, CfgNode], Any]


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's options for training and evaluation, and ``--import`` for plug-ins.

    ``--dist-url`` defaults to a free port, so that several jobs can run on one machine.
    """
    parser = default_argument_parser(epilog)
    parser.set_defaults(dist_url="auto")
    add_import_option(parser)
    return parser


def load_config(config_file: str, options: list[str]) -> CfgNode:
    """Read a YAML config and command-line overrides, fit it to the machine, and validate it.

    Without a CUDA device, ``MODEL.DEVICE`` becomes "cpu" and mixed precision is switched off.
    The datasets of ``DATASETS.VID`` are registered in this process.

    Raises:
        ConfigError, DataError: one line on what is wrong, and the remedy.
    """
    cfg = get_clab_cfg()
    if not config_file:
        raise ConfigError("no config given; add --config-file, such as configs/MiniVID/clab.yaml")
    if not os.path.isfile(config_file):
        raise ConfigError(f"{config_file}: there is no such config file; see the folder configs")
    # Detectron2 would otherwise let a YAML file call any Python function.
    _merge(config_file, functools.partial(cfg.merge_from_file, allow_unsafe=False), config_file)
    _merge("command line", cfg.merge_from_list, options)
    if not torch.cuda.is_available() and torch.device(cfg.MODEL.DEVICE).type == "cuda":
        logger.warning("No CUDA device here: running on the CPU (MODEL.DEVICE cpu, no AMP)")
        cfg.MODEL.DEVICE = "cpu"
        cfg.SOLVER.AMP.ENABLED = False
    validate_config(cfg)
    cfg.freeze()
    register_datasets_from_config(cfg)
    check_num_classes(cfg)
    return cfg


def _merge(source: str, merge: Callable[[Any], None], what: Any) -> None:
    """Merge into a config; yacs tells a wrong key by KeyError or by a failed assertion."""
    try:
        merge(what)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source}: not valid YAML ({reason}); correct the file") from None
    except TypeError:
        raise ConfigError(f"{source}: holds no KEY: VALUE pairs; see folder configs") from None
    except OSError as error:
        raise ConfigError(f"{source}: {error.filename} can't be read ({error.strerror})") from None
    except (AssertionError, KeyError, ValueError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise ConfigError(
            f"{source}: {reason}; our keys are in clab_d2/config.py, a plug-in's "
            "need its --import"
        ) from None


def setup_process(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What each process of a job does first: loggers, seeds, datasets, threads."""
    # What Detectron2 calls by an old name works all the same.
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="clab_d2")
    register_datasets_from_config(cfg)
    processes = comm.get_local_size()
    if torch.device(cfg.MODEL.DEVICE).type == "cpu" and processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def run(main: Main, args: argparse.Namespace) -> int:
    """Run ``main(args, cfg)`` in ``--num-gpus`` processes on each of ``--num-machines``.

    Where there is no GPU these are CPU processes. A mistake of the user's is printed as one line;
    the environment variable ``CLAB_D2_TRACEBACK=1`` shows where it came up.

    Args:
        main: a module's function (processes import it), called after :func:`setup_process`.
        args: of :func:`argument_parser`.

    Returns:
        Exit status: 0, 2 for a mistake of the user's, 128 + signal if a signal stopped the job.
    """
    # A place for the first process with a mistake of the user's to leave its line.
    mistakes = multiprocessing.get_context("spawn").SimpleQueue()
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_user_error)
    spawns = args.num_gpus * args.num_machines > 1
    with _signals_passed_on() if spawns else nullcontext([]) as received:
        try:
            import_plugins(args.imports)
            cfg = load_config(args.config_file, args.opts)
            _check_processes(args, cfg)
            launch(
                _process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args, cfg, mistakes),
            )
        except USER_ERRORS as error:
            if _wants_traceback():
                raise
            return _report(one_line(error))
        except ProcessExitedException as error:
            if not mistakes.empty():
                return _report(mistakes.get())
            return 128 - error.exit_code if error.exit_code < 0 else error.exit_code
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except Exception:
            if not mistakes.empty():
                return _report(mistakes.get())
            raise
    return 128 + received[0] if received else 0


def _process(main: Main, args: argparse.Namespace, cfg: CfgNode, mistakes: Any) -> None:
    """One process of a job."""
    if comm.get_world_size() == 1:
        setup_process(cfg, args)
        main(args, cfg)
        return
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_user_error)
    try:
        import_plugins(args.imports)  # a new process has none of the launcher's modules
        setup_process(cfg, args)
        main(args, cfg)
    except USER_ERRORS as error:
        if _wants_traceback():
            raise
        mistakes.put(one_line(error))
        sys.exit(EXIT_USER_ERROR)


def _check_processes(args: argparse.Namespace, cfg: CfgNode) -> None:
    world_size = args.num_gpus * args.num_machines
    if args.num_gpus < 1:
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}; it must be at least 1 (without a GPU, 1 is one CPU "
            "process)"
        )
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    if on_gpu and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}, but this machine has {torch.cuda.device_count()}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ConfigError(
            f"--num-machines is {args.num_machines}: give --dist-url tcp://HOST:PORT of machine 0, "
            "the same on every machine"
        )
    clips = cfg.SOLVER.IMS_PER_BATCH
    if not args.eval_only and not cfg.SOLVER.REFERENCE_WORLD_SIZE and clips % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {clips} can't be shared out evenly to {world_size} processes; "
            f"set it to a multiple of {world_size}"
        )
    if not on_gpu and world_size > 1:
        logger.warning("--num-gpus %d: as many processes on the CPU", args.num_gpus)


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


def one_line(error: BaseException) -> str:
    """The message of a user's mistake, without the traceback that a data loader's worker adds."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "Original Traceback" in str(error):
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(line.strip() for line in lines)


def _report(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return EXIT_USER_ERROR


def _wants_traceback() -> bool:
    return os.environ.get("CLAB_D2_TRACEBACK", "") not in ("", "0")


def _is_no_user_error(record: logging.LogRecord) -> bool:
    """Keep Detectron2's trainer from logging the traceback of what is told in one line."""
    error = record.exc_info[1] if record.exc_info else None
    return _wants_traceback() or not isinstance(error, USER_ERRORS)
