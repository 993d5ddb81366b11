"""Training and evaluation: the trainer, its hooks and checkpoints, and how tools start jobs."""

from typing import TYPE_CHECKING

from clab_d2._lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__ = lazy_names(
    __name__,
    {
        "DataOrder": "clab_d2.engine.hooks",
        "StopOnSignal": "clab_d2.engine.hooks",
        "Trainer": "clab_d2.engine.trainer",
        "VIDCheckpointer": "clab_d2.engine.checkpointer",
        "add_import_option": "clab_d2.engine.plugins",
        "argument_parser": "clab_d2.engine.launch",
        "build_optimizer": "clab_d2.engine.optimizer",
        "import_plugins": "clab_d2.engine.plugins",
        "load_config": "clab_d2.engine.config_file",
        "one_line": "clab_d2.engine.launch",
        "run": "clab_d2.engine.launch",
        "setup_process": "clab_d2.engine.launch",
        "validate_config": "clab_d2.engine.config_check",
    },
)
