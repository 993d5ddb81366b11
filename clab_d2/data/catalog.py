"""Datasets that a config names: registered from it, and checked against it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from clab_d2.data.coco_vid import (
    get_video_table,
    load_coco_vid,
    register_coco_vid,
)
from clab_d2.data.dataset_classes import read_classes_metadata
from clab_d2.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# Frames looked for before a job begins, spread over the dataset.
_FRAMES_TO_PROBE = 20


def register_datasets_from_config(cfg: CfgNode) -> None:
    """Register the datasets of ``DATASETS.VID``: ``[[name, json_file, image_root], ...]``.

    Their classes come from the JSON, in its order. Registering the same again does nothing; a name
    that an earlier config gave to other files is given to these.

    Raises:
        ConfigError: an entry is malformed or takes the name of another dataset.
        DataError: a JSON file is missing or broken.
    """
    for entry in cfg.DATASETS.VID:
        if len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise ConfigError(
                f"DATASETS.VID: {entry!r} is not [name, json_file, image_root]; write "
                "DATASETS.VID \"[['mine', 'mine.json', 'frames/']]\""
            )
        name, json_file, image_root = entry
        metadata = MetadataCatalog.get(name)
        if name in DatasetCatalog:
            if (metadata.get("json_file"), metadata.get("image_root")) == (json_file, image_root):
                continue
            if not metadata.get("from_config"):
                raise ConfigError(
                    f"DATASETS.VID: the name {name!r} is taken by a dataset that is there "
                    "already; choose another"
                )
            DatasetCatalog.remove(name)
        classes = read_classes_metadata(json_file)
        MetadataCatalog.pop(name, None)
        register_coco_vid(name, {"from_config": True, **classes}, json_file, image_root)


def check_num_classes(cfg: CfgNode) -> None:
    """Check that every dataset of the config is there and has the classes that the model has.

    A detector numbers its classes as its training sets list them, so all sets, those for
    evaluation included, must have the same names in the same order.

    Raises:
        ConfigError: a dataset is not registered, the classes of two sets differ, or
            ``MODEL.ROI_HEADS.NUM_CLASSES`` is not their number.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name in names:
        check_registered(name)
    check_same_classes(names)
    for name in names:
        classes = classes_of_dataset(name)
        if classes is not None and len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ConfigError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but dataset "
                f"{name!r} has {len(classes)} class(es); set MODEL.ROI_HEADS.NUM_CLASSES "
                f"{len(classes)}"
            )


def classes_of_dataset(name: str) -> list[str] | None:
    """Names of a registered dataset's classes in its order; None where they can't be known yet.

    Those of a video dataset that declares none are its JSON's.
    """
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes")
    if classes is None and metadata.get("evaluator_type") == "vid":
        try:
            classes = read_classes_metadata(metadata.json_file)["thing_classes"]
        except DataError:
            return None  # told, with the remedy, where the file is needed
    return None if classes is None else list(classes)


def class_names(cfg: CfgNode) -> list[str] | None:
    """Names of the classes of a config's datasets, those for evaluation first.

    A dataset that is not registered, or has another number of classes than the model, is passed
    over; None where no other is left.
    """
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        # Asking the catalog for another's metadata would make it.
        names = classes_of_dataset(name) if name in DatasetCatalog else None
        if names is not None and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return names
    return None


def numbered_classes(cfg: CfgNode) -> list[str]:
    """What classes without a name are called."""
    return [f"class {index}" for index in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]


def check_files(names: Iterable[str]) -> None:
    """Check that datasets needed later can be used, before hours go by.

    The annotations are read whole; of the frames some are looked for.

    Raises:
        ConfigError: a dataset is not registered, or no video dataset.
        DataError: its annotation file is missing or unusable, or none of its frames can be found.
    """
    for name in names:
        check_video_dataset(name)
        # Rather than get_video_table, which would be content with what was read long ago.
        metadata = MetadataCatalog.get(name)
        load_coco_vid(metadata.json_file, metadata.image_root, name, key_frames_only=True)
        check_frames(name)


def check_frames(name: str) -> None:
    """Say at once if the image root is wrong, rather than frame by frame once it all runs.

    Raises:
        DataError: no video of the dataset is there, or none of the frames looked for.
    """
    table = get_video_table(name)
    if table.not_found:
        missing = f"dataset {name!r}: {table.not_found[0]}"
        remedy = "fetch either, or correct the image root or the annotations"
        if len(table.not_found) == len(table.video_ids):
            raise DataError(f"{table.image_root}: {missing}; {remedy}")
        logger.warning(
            "%s (%d of %d videos are missing); %s", missing, len(table.not_found),
            len(table.video_ids), remedy,
        )
    step = max(len(table.video_ids) // _FRAMES_TO_PROBE, 1)
    probed = [table.file_name(video_id, 0) for video_id in table.video_ids[::step]]
    # A frame of a video file is named <file>#<index>.
    if not any(os.path.exists(f) or os.path.exists(f.rpartition("#")[0]) for f in probed):
        raise DataError(
            f"{table.image_root}: none of {len(probed)} frame(s) looked for is there, the first "
            f"being {probed[0]}; correct the image folder of dataset {name!r}, or fetch its frames"
        )


def check_video_dataset(name: str) -> None:
    """Raise a ConfigError unless ``name`` is a registered dataset of videos (or stills)."""
    check_registered(name)
    if MetadataCatalog.get(name).get("evaluator_type") != "vid":
        raise ConfigError(
            f"{name!r} is no video dataset; name its JSON and image folder in DATASETS.VID (COCO "
            "files serve as still clips)"
        )


def check_registered(name: str) -> None:
    """Raise a ConfigError unless ``name`` is a registered dataset."""
    if name not in DatasetCatalog:
        raise ConfigError(
            f"dataset {name!r} is not registered; name its JSON and image folder in DATASETS.VID, "
            f"or use one of {', '.join(sorted(_video_datasets()))}"
        )


def check_same_classes(names: Iterable[str]) -> None:
    """Raise a ConfigError unless the datasets have the same classes in the same order.

    Args:
        names: registered datasets; the classes of the first are what the others should have.
    """
    first, classes = None, None
    for name in names:
        these = classes_of_dataset(name)
        if these is None:
            continue
        if classes is None:
            first, classes = name, these
        elif these != classes:
            raise ConfigError(
                f"datasets {first!r} and {name!r} have different classes "
                f"({difference_of_classes(classes, these)}), but a detector has one list of them; "
                f"give {name!r}'s JSON the categories of {first!r}'s, in that order (one without "
                "objects does no harm)"
            )


def difference_of_classes(expected: Sequence[str], found: Sequence[str]) -> str:
    """How one list of classes differs from another, in a few words."""
    parts = []
    for what, names in (
        ("the second lacks", [name for name in expected if name not in found]),
        ("the second has besides", [name for name in found if name not in expected]),
    ):
        if names:
            parts.append(f"{what} {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    if not parts:
        pairs = enumerate(zip(expected, found, strict=True))
        place, (this, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        parts.append(f"the order differs: number {place} is {this} in one, {other} in the other")
    return "; ".join(parts)


def collect_bad_frames(dataset_names: Iterable[str]) -> list[str]:
    """Return the files that could not be read so far, over all processes, and warn of them.

    For the end of a job that left bad frames out. Every process must call it.

    Args:
        dataset_names: the datasets that the job used.

    Returns:
        Distinct file names, sorted; the same in every process.
    """
    local = {file for name in dataset_names for file in get_video_table(name).bad_frames()}
    files = sorted(set().union(*comm.all_gather(local)))
    if files and comm.is_main_process():
        logger.warning(
            "%d frame(s) could not be read and were left out: %s%s", len(files),
            ", ".join(files[:10]), ", ..." if len(files) > 10 else "",
        )
    return files


def _video_datasets() -> list[str]:
    return [n for n in DatasetCatalog if MetadataCatalog.get(n).get("evaluator_type") == "vid"]
