"""Training and evaluation: the trainer, its hooks and checkpoints, and how tools start jobs."""

from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.engine.config_check import validate_config
from clab_d2.engine.config_file import load_config
from clab_d2.engine.hooks import DataOrder, StopOnSignal
from clab_d2.engine.launch import argument_parser, one_line, run, setup_process
from clab_d2.engine.optimizer import build_optimizer
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.engine.trainer import Trainer

__all__ = [
    "DataOrder",
    "StopOnSignal",
    "Trainer",
    "VIDCheckpointer",
    "add_import_option",
    "argument_parser",
    "build_optimizer",
    "import_plugins",
    "load_config",
    "one_line",
    "run",
    "setup_process",
    "validate_config",
]
