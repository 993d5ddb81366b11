"""Which tool each subcommand of ``clab-d2`` is, and what it does in a few words."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import PathFinder

from clab_d2_cli import tools


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        name: as it is typed.
        module: the file in ``tools/`` or ``datasets/``, without ``.py``.
        summary: what it does; with the name it fits into a line of 80 columns.
    """

    name: str
    module: str
    summary: str

    @property
    def script(self) -> str:
        """The same tool as a file of a checkout."""
        folder = "datasets" if self.name in _OF_DATASETS else "tools"
        return f"{folder}/{self.module}.py"

    @property
    def is_there(self) -> bool:
        return PathFinder.find_spec(self.module, list(tools.__path__)) is not None


_OF_DATASETS = ("convert-cvat", "convert-ilsvrc", "convert-mot", "split", "thin", "find-shots")

_ALL = (
    Command("detect", "demo", "detect objects in a video, draw them, write them down"),
    Command("detect-videos", "detect_videos", "detect in a folder of videos"),
    Command("serve", "serve", "a web page: video in, detections out"),
    Command("train", "train_net", "train a detector, or evaluate one on a dataset"),
    Command("study", "study", "compare configs with several seeds"),
    Command("evaluate", "evaluate", "measure files of detections, and compare them"),
    Command("plot", "plot_metrics", "draw losses and AP of trainings"),
    Command("check", "check_dataset", "check a dataset, propose input size and anchors"),
    Command("view-data", "visualize_dataset", "draw what a training sees"),
    Command("view-attention", "visualize_attention", "draw where a detection looks"),
    Command("analyze", "analyze_model", "parameters and multiply-adds by part"),
    Command("benchmark", "benchmark", "measure speed and memory"),
    Command("convert", "convert_checkpoint", "weights of other projects to a file of ours"),
    Command("export", "export_model", "a model for other runtimes"),
    Command("convert-cvat", "convert_cvat", "annotations of CVAT to CocoVID JSON"),
    Command("convert-ilsvrc", "convert_ilsvrc", "annotations of ImageNet VID and DET"),
    Command("convert-mot", "convert_mot", "annotations of MOTChallenge"),
    Command("split", "split_coco_vid", "a CocoVID file for training and validation"),
    Command("thin", "thin_coco_vid", "fewer key frames of a CocoVID file, to measure faster"),
    Command("find-shots", "find_shots", "mark where the videos of a CocoVID file cut"),
    Command("install-detectron2", "install_detectron2", "put Detectron2 into this Python"),
)


def find_commands() -> dict[str, Command]:
    """The subcommands whose tools are there, by name, in the order of the help."""
    return {command.name: command for command in _ALL if command.is_there}
