"""Data loaders: Detectron2's, given clips instead of images and whole videos at test."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, MetadataCatalog
from detectron2.data.build import print_instances_class_histogram, trivial_batch_collator
from detectron2.utils.logger import log_first_n
from torch.utils.data import DataLoader

from clab_d2.data.catalog import check_frames, check_same_classes, check_video_dataset
from clab_d2.data.coco_json import ADD_VIDEOS
from clab_d2.data.coco_vid import load_coco_vid
from clab_d2.data.dataset_mapper import VIDDatasetMapper
from clab_d2.data.device_loader import pins_memory, to_device
from clab_d2.data.object_sizes import small_objects_warning
from clab_d2.data.samplers import VideoBatchSampler, VideoSampler
from clab_d2.data.training_order import ClipOrder, build_clip_order
from clab_d2.data.workers import init_worker
from clab_d2.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def build_vid_train_loader(
    cfg: CfgNode,
    *,
    needs_references: bool = True,
    needs_reference_truth: bool = False,
    finest_stride: int | None = None,
) -> Any:
    """Build the endless stream of training clips, VID and DET mixed.

    Each frame that may be a key frame, of all sets of ``DATASETS.TRAIN``, comes once in each pass,
    in random order (ImageNet VID: 57,834 frames and 53,638 DET images, 111,472 in all).
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` leaves out key frames without an object; any frame can
    be a reference. For a GPU, the next batch is copied there while the model has the current one.

    Args:
        cfg: the config.
        needs_references: whether the model takes reference frames (``model.needs_references``).
        needs_reference_truth: whether it takes their ground truth, too.
        finest_stride: of the maps that it detects in; given, a line warns of objects that are too
            small for it at the config's input size.

    Returns:
        An iterable of batches, each a list of ``SOLVER.IMS_PER_BATCH / world size`` clips, see
        :class:`clab_d2.data.dataset_mapper.VIDDatasetMapper`.

    Raises:
        ConfigError, DataError: a dataset is not registered, unreadable, contradicts another one or
            has no key frame, or none of its pictures can be found; the sampler is unknown or
            leaves no frame.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError("DATASETS.TRAIN is empty; name a dataset to train on")
    records = get_key_frames(names, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    if finest_stride is not None:
        warning = small_objects_warning(cfg, records, finest_stride)
        if warning is not None:
            # Once, though precise batch norm has a loader of its own.
            log_first_n(logging.WARNING, warning, key="message")
    if needs_references and all(record["num_frames"] == 1 for record in records):
        log_first_n(
            logging.WARNING,
            f"{', '.join(names)}: a detector over frames, but each image is a still or the only "
            f"frame of its video, and has no reference but itself; {ADD_VIDEOS}",
            key="message",
        )
    mapper = VIDDatasetMapper(
        cfg,
        is_train=True,
        needs_references=needs_references,
        needs_reference_truth=needs_reference_truth,
    )
    options = {"num_workers": cfg.DATALOADER.NUM_WORKERS, **_loader_options(cfg)}
    loader = TrainingLoader(records, mapper, build_clip_order(cfg, records), **options)
    return to_device(loader, cfg.MODEL.DEVICE)


class TrainingLoader(DataLoader):
    """An endless loader of batches of clips, in the order of its sampler.

    Workers make single clips, not batches, so that a batch is ready as early as it can be.

    Args:
        records: key frames.
        mapper: makes a clip of each.
        order: says which, and how many make a batch.
        options: others of PyTorch's ``DataLoader``.
    """

    def __init__(
        self, records: list[Record], mapper: VIDDatasetMapper, order: ClipOrder, **options: Any
    ) -> None:
        super().__init__(
            MapDataset(DatasetFromList(records, copy=False), mapper),
            sampler=order,
            batch_size=None,
            collate_fn=trivial_batch_collator,
            worker_init_fn=init_worker,
            **options,
        )
        self._clips_per_batch = order.batch_size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        clips = super().__iter__()
        while batch := list(itertools.islice(clips, self._clips_per_batch)):
            yield batch


def build_vid_test_loader(
    cfg: CfgNode, dataset_name: str, *, needs_references: bool = True
) -> Any:
    """Build the loader of one dataset's frames at test: this rank's share of it.

    Videos stay whole and in order, and ranks get about the same number of frames. A batch is
    ``TEST.KEY_FRAMES_PER_BATCH`` consecutive key frames of one video (fewer at its end). Frames
    whose truth is unknown count for nothing, so they are no key frames, unless
    ``TEST.ALL_FRAMES``.

    Args:
        cfg: the config.
        dataset_name: a registered video dataset.
        needs_references: whether the model takes reference frames (``model.needs_references``).

    Returns:
        An iterable, with a length, of lists of clips; empty on a rank that gets no video.

    Raises:
        ConfigError, DataError: as :func:`build_vid_train_loader`.
    """
    if cfg.TEST.KEY_FRAMES_PER_BATCH < 1:
        raise ConfigError(
            f"TEST.KEY_FRAMES_PER_BATCH is {cfg.TEST.KEY_FRAMES_PER_BATCH}; it must be at least 1"
        )
    records = _load(dataset_name, key_frames_only=False)
    num_frames = len(records)
    if not cfg.TEST.ALL_FRAMES:
        records = [record for record in records if record["annotated"]]
    key_frames: dict[tuple[str, int], list[int]] = {}
    for record in records:
        del record["annotations"]  # the truth is the evaluator's
        key_frames.setdefault((dataset_name, record["video_id"]), []).append(record["frame_id"])
    sampler = VideoSampler([record["video_id"] for record in records])
    logger.info(
        "%s: %d of %d frames are key frames, %d of them, in %d video(s), on this rank",
        dataset_name, len(records), num_frames, len(sampler), len(sampler.videos),
    )
    mapper = VIDDatasetMapper(
        cfg,
        is_train=False,
        needs_references=needs_references,
        dataset_names=[dataset_name],
        key_frames=key_frames,
    )
    table = mapper.tables[dataset_name]
    if cfg.TEST.REFERENCES.FIND_SHOTS and all(len(table.shots(v)) == 1 for v in table.video_ids):
        logger.warning(
            "%s: no video has cuts by its JSON, and TEST.REFERENCES.FIND_SHOTS does not look for "
            "them in datasets; datasets/find_shots.py does, once",
            dataset_name,
        )
    loader = DataLoader(
        MapDataset(DatasetFromList(records, copy=False), mapper),
        batch_sampler=VideoBatchSampler(sampler, cfg.TEST.KEY_FRAMES_PER_BATCH),
        collate_fn=trivial_batch_collator,
        worker_init_fn=init_worker,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        **_loader_options(cfg),
    )
    return to_device(loader, cfg.MODEL.DEVICE)


def get_key_frames(names: Sequence[str], filter_empty: bool = True) -> list[Record]:
    """Return the training key frames of several datasets, one after the other.

    Args:
        names: registered datasets.
        filter_empty: leave out frames without an object that isn't a crowd.
    """
    records: list[Record] = []
    for name in names:
        frames = _load(name, key_frames_only=True)
        if not frames:
            raise DataError(
                f"{MetadataCatalog.get(name).json_file}: dataset {name!r} has no key frame to "
                'train on: no annotated frame has "is_vid_train_frame": true; use the training '
                "split, or take that key out of every image"
            )
        kept = [frame for frame in frames if not filter_empty or _has_object(frame)]
        logger.info(
            "%s: %d key frames, %d left out for having no object", name, len(kept),
            len(frames) - len(kept),
        )
        if not kept:
            raise DataError(
                f"{MetadataCatalog.get(name).json_file}: no key frame of dataset {name!r} has an "
                "object; annotate some, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
            )
        records += kept
    check_same_classes(names)
    print_instances_class_histogram(records, MetadataCatalog.get(names[0]).thing_classes)
    return records


def _load(name: str, key_frames_only: bool) -> list[Record]:
    check_video_dataset(name)
    metadata = MetadataCatalog.get(name)
    records = load_coco_vid(metadata.json_file, metadata.image_root, name, key_frames_only)
    check_frames(name)
    return records


def _has_object(record: Record) -> bool:
    return any(not annotation["iscrowd"] for annotation in record["annotations"])


def _loader_options(cfg: CfgNode) -> dict[str, Any]:
    options: dict[str, Any] = {"pin_memory": pins_memory(cfg.MODEL.DEVICE)}
    if cfg.DATALOADER.NUM_WORKERS:
        # Workers read ahead, so that a clip of many or large frames doesn't hold up a step.
        options["prefetch_factor"] = 4
    return options
