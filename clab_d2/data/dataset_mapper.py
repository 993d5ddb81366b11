"""From a frame's dataset dict to the clip that the model takes."""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch.utils.data import get_worker_info

from clab_d2.data.clip_augmentation import ClipAugmentation, ClipTransform
from clab_d2.data.coco_vid import get_video_table
from clab_d2.data.frames import IMAGE_FORMATS, read_frame
from clab_d2.data.reference_sampling import ReferenceSampling, build_reference_sampling
from clab_d2.data.reference_schedule import ReferenceSchedule
from clab_d2.data.shot_references import ShotReferences
from clab_d2.data.truth_table import TruthTable, load_truth_table
from clab_d2.data.video_table import VideoTable
from clab_d2.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# So many unreadable key frames in a row are no accident: the image folder is wrong, or gone.
_MAX_BAD_KEYS_IN_A_ROW = 100

# Frames that a training mapper holds, as other clips of the batch may need them, too.
_MAX_RECENT_BYTES = 64 * 2**20

# Videos whose schedules a test mapper holds: batches of two may take turns in a worker.
_MAX_SCHEDULES = 4


class VIDDatasetMapper:
    """Reads and augments a clip: a key frame and the reference frames it needs.

    A clip is a dict. It holds of the dataset dict ``height`` and ``width`` (original),
    ``image_id``, ``video_id``, ``frame_id`` (the key frame's), ``file_name`` and ``dataset_name``,
    and

    - ``images``: frame id -> uint8 tensor (3, H, W), resized. In training the key frame and each
      distinct reference; at test the frames that no earlier key frame of the video has used, so
      that each comes once (:mod:`clab_d2.data.reference_schedule`);
    - ``reference_frame_ids``: frames that the key frame aggregates over, repeats included (see
      :class:`ReferenceSampling`);
    - in training ``instances``: frame id -> Instances with ``gt_boxes``, ``gt_classes`` and
      ``gt_tracks`` ((N,) identities within the video, -1 where not known), of the key frame, and,
      where ``truths`` are given, of the references whose truth is known (that of a picture whose
      size is not the annotations' is not);
    - at test ``kept_frame_ids``: frames given so far that a later key frame uses.

    All frames of a clip are resized and flipped alike. A reference whose size differs from the key
    frame's (a video whose size changes midway) is resized by the same rule. In training, a frame
    that several clips in a row need is decoded for the first of them.

    Unless ``strict``, an unreadable frame is noted in the dataset's table, warned of once, and
    worked around: in training an unreadable key frame gives None instead of a clip, for which
    Detectron2's loader draws another, and an unreadable reference is replaced by another one, or
    the key frame; at test the image is None.

    Args:
        is_train: whether to augment and to give ``instances``.
        augmentation: draws the resize and flip of each clip.
        sampling: which reference frames a clip has, within the key frame's shot where the table
            tells of shots; None for none.
        tables: the videos of each dataset, by its name.
        truths: the truth of all frames of each dataset, by its name, for references in training.
        key_frames: at test, the key frames of each video, by (dataset name, video id), ascending;
            all frames where not given.
        image_format: order of the colour channels, "RGB" or "BGR".
        strict: raise a DataError at the first unreadable frame.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentation: ClipAugmentation,
        sampling: ReferenceSampling | None,
        tables: Mapping[str, VideoTable],
        truths: Mapping[str, TruthTable] | None = None,
        key_frames: Mapping[tuple[str, int], Sequence[int]] | None = None,
        image_format: str = "RGB",
        strict: bool = False,
    ) -> None:
        if image_format not in IMAGE_FORMATS:
            raise ConfigError(
                f"INPUT.FORMAT is {image_format!r}; it must be one of {IMAGE_FORMATS}"
            )
        self.is_train = is_train
        self.augmentation = augmentation
        self.sampling = sampling
        self.tables = dict(tables)
        self.truths = dict(truths or {})
        self.key_frames = dict(key_frames or {})
        self.image_format = image_format
        self.strict = strict
        self._recent = _RecentFrames(_MAX_RECENT_BYTES if is_train else 0)
        self._schedules: OrderedDict[tuple[str, int], ReferenceSchedule] = OrderedDict()
        self._bad_keys_in_a_row = 0
        self._in_worker = False
        logger.info(
            "Clips in %s: %s, references: %s",
            "training" if is_train else "test", augmentation,
            "none" if sampling is None else type(sampling).__name__,
        )

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool = True,
        *,
        needs_references: bool = True,
        needs_reference_truth: bool = False,
        dataset_names: Iterable[str] | None = None,
        key_frames: Mapping[tuple[str, int], Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """Read the config.

        Args:
            cfg: the config.
            is_train: whether the clips are for training.
            needs_references: whether the model takes references (``model.needs_references``).
            needs_reference_truth: whether it takes their truth in training
                (``model.needs_reference_truth``).
            dataset_names: datasets to be ready for; by default all training (or test) sets.
            key_frames: see the class.
        """
        if dataset_names is None:
            dataset_names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        names = list(dataset_names)
        with_truth = is_train and needs_references and needs_reference_truth
        return {
            "is_train": is_train,
            "augmentation": ClipAugmentation.from_config(cfg, is_train),
            "sampling": build_reference_sampling(cfg, is_train) if needs_references else None,
            "tables": {name: get_video_table(name) for name in names},
            "truths": {name: load_truth_table(name) for name in names} if with_truth else None,
            "key_frames": key_frames,
            "image_format": cfg.INPUT.FORMAT,
            "strict": cfg.DATALOADER.STRICT,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make the clip of a key frame.

        Args:
            record: a dataset dict of :func:`clab_d2.data.coco_vid.load_coco_vid`; left as it is.

        Returns:
            The clip, or None in training where the key frame is unreadable.

        Raises:
            DataError: a frame is unreadable, and ``strict``; or in training a hundred key frames in
                a row are.
        """
        self._set_up_worker()
        clip: dict[str, Any] = {
            name: record[name]
            for name in (
                "height", "width", "image_id", "video_id", "frame_id", "file_name", "dataset_name",
            )
        }
        return self._training_clip(clip, record) if self.is_train else self._test_clip(clip, record)

    def _training_clip(
        self, clip: dict[str, Any], record: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        transform = self.augmentation.sample()
        key = record["frame_id"]
        sampling = self._sampling_in(record)
        frames = sampling.references(record["num_frames"], key) if sampling else []
        key_image = self._read(record, key, check_size=True)
        self._count_bad_keys(key_image, record["file_name"])
        if key_image is None:
            return None
        images = {f: self._read(record, f) for f in sorted(set(frames) - {key})}
        images = {key: key_image, **images}
        frames, images = _without_unreadable(frames, key, images)
        clip["images"] = {frame: _to_tensor(image, transform) for frame, image in images.items()}
        clip["reference_frame_ids"] = frames
        clip["instances"] = {
            frame: _instances(
                annotations, images[frame].shape[:2], tuple(tensor.shape[1:]), transform
            )
            for frame, tensor in clip["images"].items()
            if (annotations := self._truth(record, frame, images[frame].shape[:2])) is not None
        }
        return clip

    def _test_clip(self, clip: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
        transform = self.augmentation.sample()
        scheduled = self._schedule(record).at(record["frame_id"])
        # Each of them is a key frame when its turn comes, so its boxes have to fit.
        images = {frame: self._read(record, frame, check_size=True) for frame in scheduled.entering}
        clip["images"] = {
            frame: None if image is None else _to_tensor(image, transform)
            for frame, image in images.items()
        }
        clip["reference_frame_ids"] = scheduled.references
        clip["kept_frame_ids"] = scheduled.kept
        return clip

    def _schedule(self, record: Mapping[str, Any]) -> ReferenceSchedule:
        video = (record["dataset_name"], record["video_id"])
        schedule = self._schedules.pop(video, None)
        if schedule is None:
            keys = self.key_frames.get(video)
            schedule = ReferenceSchedule(self._sampling_in(record), record["num_frames"], keys)
        self._schedules[video] = schedule
        if len(self._schedules) > _MAX_SCHEDULES:
            self._schedules.popitem(last=False)
        return schedule

    def _sampling_in(self, record: Mapping[str, Any]) -> ReferenceSampling | None:
        shots = self.tables[record["dataset_name"]].shots(record["video_id"])
        if self.sampling is None or len(shots) == 1:
            return self.sampling
        return ShotReferences(self.sampling, shots)

    def _truth(
        self, record: Mapping[str, Any], frame: int, size: tuple[int, int]
    ) -> Sequence[Mapping[str, Any]] | None:
        """Annotations of a frame of the record's video; None where they are not known.

        Args:
            record: of the key frame.
            frame: the key frame or a reference.
            size: (height, width) of the frame's picture.
        """
        if frame == record["frame_id"]:
            return record["annotations"]
        name, video_id = record["dataset_name"], record["video_id"]
        truth = self.truths.get(name)
        if truth is None or self.tables[name].size(video_id, frame) != size:
            return None  # boxes stated at another size can't be trusted
        return truth.annotations(video_id, frame)

    def _read(
        self, record: Mapping[str, Any], frame: int, check_size: bool = False
    ) -> np.ndarray | None:
        """Read a frame; None, and a note of it, if it is unreadable and that is to be survived."""
        table, video_id = self.tables[record["dataset_name"]], record["video_id"]
        file_name = table.file_name(video_id, frame)
        try:
            image = self._recent.read(file_name, self.image_format)
            if check_size:
                _check_size(image, table.size(video_id, frame), file_name)
        except DataError as error:
            if self.strict:
                raise
            if table.mark_bad(video_id, frame):
                logger.warning("Frame left out: %s", error)
            return None
        return image

    def _count_bad_keys(self, image: np.ndarray | None, file_name: str) -> None:
        """End a training that finds nothing to train on.

        Its key frames come in random order, so that many in a row are no accident. At test the
        frames of a missing video come one after the other, and are to be survived.
        """
        self._bad_keys_in_a_row = self._bad_keys_in_a_row + 1 if image is None else 0
        if self._bad_keys_in_a_row >= _MAX_BAD_KEYS_IN_A_ROW:
            raise DataError(
                f"{file_name} and the {_MAX_BAD_KEYS_IN_A_ROW - 1} key frames before it could not "
                "be read; check the dataset's image folder"
            )

    def _set_up_worker(self) -> None:
        if not self._in_worker and get_worker_info() is not None:
            # OpenCV's threads don't survive a fork, and workers are the parallelism here.
            cv2.setNumThreads(0)
            self._in_worker = True


def _instances(
    annotations: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    new_size: tuple[int, int],
    transform: ClipTransform,
) -> Instances:
    """Ground truth of a frame, moved as its pixels are; crowds are no targets.

    Args:
        annotations: of the dataset.
        size: (height, width) that they are stated at.
        new_size: that of the transformed image.
        transform: what was done to it.
    """
    transforms = transform.for_size(*size)
    objects = [
        detection_utils.transform_instance_annotations(dict(annotation), transforms, new_size)
        for annotation in annotations
        if not annotation["iscrowd"]
    ]
    instances = detection_utils.annotations_to_instances(objects, new_size)
    instances.gt_tracks = torch.tensor([o["instance_id"] for o in objects], dtype=torch.int64)
    return detection_utils.filter_empty_instances(instances)


class _RecentFrames:
    """Reads frames, and holds those read last.

    Args:
        max_bytes: how much of them to hold; 0: nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._frames: OrderedDict[str, np.ndarray] = OrderedDict()

    def read(self, file_name: str, image_format: str) -> np.ndarray:
        """As :func:`read_frame`; what is returned is not to be written to."""
        image = self._frames.pop(file_name, None)
        if image is None:
            image = read_frame(file_name, image_format)
            self._bytes += image.nbytes
        self._frames[file_name] = image
        while self._bytes > self._max_bytes:
            self._bytes -= self._frames.popitem(last=False)[1].nbytes
        return image


def _check_size(image: np.ndarray, size: tuple[int, int], file_name: str) -> None:
    if image.shape[:2] != size:
        # Boxes drawn at another size can't be trusted, and there is no telling which is right. A
        # reference has no boxes, so there any size will do.
        raise DataError(
            f"{file_name}: the picture is {image.shape[1]}x{image.shape[0]}, but the annotations "
            f"say {size[1]}x{size[0]}; correct the annotations or the picture"
        )


def _without_unreadable(
    frames: list[int], key: int, images: Mapping[int, np.ndarray | None]
) -> tuple[list[int], dict[int, np.ndarray]]:
    """Replace unreadable references by readable ones, in turn, or by the key frame."""
    stand_ins = [frame for frame in frames if images[frame] is not None] or [key]
    turn = itertools.cycle(stand_ins)
    replaced = [frame if images[frame] is not None else next(turn) for frame in frames]
    return replaced, {f: image for f, image in images.items() if image is not None}


def _to_tensor(image: np.ndarray, transform: ClipTransform) -> torch.Tensor:
    transforms: T.TransformList = transform.for_size(*image.shape[:2])
    # Tensors pass between processes through shared memory; arrays would be pickled.
    return torch.as_tensor(
        np.ascontiguousarray(transforms.apply_image(image).transpose(2, 0, 1))
    )
