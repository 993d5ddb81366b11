"""From a frame's dataset dict to the clip that the model takes."""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from torch.utils.data import get_worker_info

from clab_d2.data.coco_vid import get_video_table
from clab_d2.data.frame_sampling import (
    adaptive_references,
    causal_window,
    entering_frames,
    fixed_stride_window,
    training_references,
)
from clab_d2.data.frames import IMAGE_FORMATS, ClipAugmentation, ClipTransform, read_frame
from clab_d2.data.video_table import VideoTable
from clab_d2.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# So many unreadable key frames in a row are no accident: the image folder is wrong, or gone.
_MAX_BAD_KEYS_IN_A_ROW = 100

# Frames that a training mapper holds, as other clips of the batch may need them, too.
_MAX_RECENT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ReferenceSampling:
    """Which reference frames a clip has.

    Attributes:
        method: "random" (training), "adaptive", "fixed", "causal" or "none".
        num: how many references. "fixed" has half of them on each side of the key frame.
        stride: frames between two of them ("fixed" and "causal").
        frame_range: how far from the key frame to draw them ("random").
    """

    method: str
    num: int = 0
    stride: int = 1
    frame_range: int = 9

    def __post_init__(self) -> None:
        if self.method not in ("random", "adaptive", "fixed", "causal", "none"):
            raise ConfigError(
                f"TEST.REFERENCES.SAMPLING is {self.method!r}; it must be adaptive, fixed or causal"
            )
        key = "INPUT.REFERENCES" if self.method == "random" else "TEST.REFERENCES"
        if self.method != "none" and self.num < 1:
            raise ConfigError(f"{key}.NUM is {self.num}; it must be at least 1")
        if self.method == "fixed" and self.num % 2:
            raise ConfigError(
                f"TEST.REFERENCES.NUM is {self.num}; fixed sampling takes half before and half "
                "after the key frame, so it must be even"
            )
        if self.stride < 1:
            raise ConfigError(f"TEST.REFERENCES.STRIDE is {self.stride}; it must be at least 1")
        if self.frame_range < 1:
            raise ConfigError(f"INPUT.REFERENCES.RANGE is {self.frame_range}; at least 1 is needed")

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> ReferenceSampling:
        """Read ``INPUT.REFERENCES`` or ``TEST.REFERENCES``; "none" for a model that needs none."""
        needed = cfg.MODEL.SELSA.ENABLED or cfg.MODEL.TEMPORAL_ROI_ALIGN.ENABLED
        if is_train:
            needed = needed or cfg.MODEL.CONTRASTIVE.ENABLED
            references = cfg.INPUT.REFERENCES
            if needed:
                return cls("random", references.NUM, frame_range=references.RANGE)
        elif needed:
            references = cfg.TEST.REFERENCES
            return cls(references.SAMPLING, references.NUM, references.STRIDE)
        return cls("none")

    def frames(self, num_frames: int, key: int) -> list[int]:
        """Return the frames that the key frame aggregates over, repeats included.

        In training the references alone; at test with the key frame among them.
        """
        if self.method == "random":
            # Python's global state is seeded in each worker; a generator of its own would be
            # copied into all workers and draw the same in each.
            rng = random.Random(random.getrandbits(64))
            return training_references(num_frames, key, self.num, self.frame_range, rng)
        if self.method == "adaptive":
            return [*adaptive_references(num_frames, self.num), key]
        if self.method == "fixed":
            return fixed_stride_window(num_frames, key, self.num // 2, self.stride)
        if self.method == "causal":
            return causal_window(key, self.num, self.stride)
        return []

    def frames_to_read(self, num_frames: int, key: int, frames: list[int]) -> list[int]:
        """Return the distinct ones of ``frames`` that the model hasn't seen, without the key.

        In training all of them; at test those that enter the memory at this key frame: the
        adaptive ones all at the video's first frame.
        """
        if self.method == "random" or key == 0:
            previous = None
        elif self.method == "adaptive":
            return []
        else:
            previous = self.frames(num_frames, key - 1) if self.method != "none" else None
        return [frame for frame in entering_frames(frames, previous) if frame != key]

    def given_before(self, num_frames: int, key: int, frame: int) -> bool:
        """Whether the clip of an earlier key frame of the video has had this frame's image.

        Args:
            frame: the key frame, or one of its :meth:`frames_to_read`.
        """
        if key == 0 or self.method in ("random", "none"):
            return False
        # Every frame has been the key frame, in its turn.
        return frame < key or frame in self.frames(num_frames, key - 1)

    def needed_later(self, key: int, frame: int) -> bool:
        """Whether the clip of a later key frame has to have this frame's image again.

        Args:
            frame: a frame that the clips up to ``key`` have had.
        """
        # On a grid of several frames, the window leaves out its middle for the key frame until the
        # middle moves on, when it comes back.
        returns = self.method == "fixed" and self.stride > 1 and frame == key - key % self.stride
        return frame > key or returns


class ClipImages:
    """Puts into the clips of a video what a mapper left out, as earlier clips have had it.

    Holds no more images than the key frame has references.

    Args:
        sampling: that of the clips.
    """

    def __init__(self, sampling: ReferenceSampling) -> None:
        self._sampling = sampling
        self._video: tuple[Any, Any] | None = None
        self._images: dict[int, torch.Tensor | None] = {}

    def complete(self, clip: dict[str, Any]) -> dict[str, Any]:
        """Put in the images of the frames that ``given_before`` names, in place; return the clip.

        The clips of a video come in order.
        """
        video, key = (clip["dataset_name"], clip["video_id"]), clip["frame_id"]
        if video != self._video or key == 0:
            self._video, self._images = video, {}
        for frame in clip.pop("given_before"):
            if frame == key:
                clip["image"] = self._images[key]
            else:
                clip["reference_images"][frame] = self._images[frame]
        self._images |= {**clip["reference_images"], key: clip["image"]}
        self._images = {
            frame: image
            for frame, image in self._images.items()
            if self._sampling.needed_later(key, frame)
        }
        return clip


class VIDDatasetMapper:
    """Reads and augments a clip: a key frame and the reference frames it needs.

    A clip is a dict. It holds of the dataset dict ``height`` and ``width`` (original),
    ``image_id``, ``video_id``, ``frame_id``, ``file_name`` and ``dataset_name``, and

    - ``image``: uint8 tensor (3, H, W), the key frame, resized;
    - ``reference_frame_ids``: frames that the key frame aggregates over, repeats included (see
      :class:`ReferenceSampling`);
    - ``reference_images``: frame id -> uint8 tensor (3, H', W'), of each distinct reference but the
      key frame; at test only of those that enter the memory at this key frame;
    - in training ``instances`` with ``gt_boxes`` and ``gt_classes``.

    All frames of a clip are resized and flipped alike. A reference whose size differs from the key
    frame's (a video whose size changes midway) is resized by the same rule.

    Each frame of a video is decoded once at test, if ``repeat_images`` is False: a clip then has
    ``given_before``, the frames whose images belong into it but were in the clips of earlier key
    frames, whichever worker made them; :class:`ClipImages` puts them in. In training, a frame that
    several clips in a row need is decoded for the first of them.

    Unless ``strict``, an unreadable frame is noted in the dataset's table, warned of once, and
    worked around: in training an unreadable key frame gives None instead of a clip, for which
    Detectron2's loader draws another, and an unreadable reference is replaced by another one, or
    the key frame; at test the image is None.

    Args:
        is_train: whether to augment and to give ``instances``.
        augmentation: draws the resize and flip of each clip.
        sampling: which reference frames a clip has.
        tables: the videos of each dataset, by its name.
        image_format: order of the colour channels, "RGB" or "BGR".
        strict: raise a DataError at the first unreadable frame.
        repeat_images: at test, give an image again that an earlier clip of its video has had.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentation: ClipAugmentation,
        sampling: ReferenceSampling,
        tables: Mapping[str, VideoTable],
        image_format: str = "RGB",
        strict: bool = False,
        repeat_images: bool = True,
    ) -> None:
        if image_format not in IMAGE_FORMATS:
            raise ConfigError(
                f"INPUT.FORMAT is {image_format!r}; it must be one of {IMAGE_FORMATS}"
            )
        self.is_train = is_train
        self.augmentation = augmentation
        self.sampling = sampling
        self.tables = dict(tables)
        self.image_format = image_format
        self.strict = strict
        self.repeat_images = repeat_images
        self._recent = _RecentFrames(_MAX_RECENT_BYTES if is_train else 0)
        self._bad_keys_in_a_row = 0
        self._in_worker = False
        logger.info(
            "Clips in %s: %s, %s", "training" if is_train else "test", augmentation, sampling
        )

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = True, dataset_names: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Read the config; by default the tables of all its training (or test) sets."""
        if dataset_names is None:
            dataset_names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        return {
            "is_train": is_train,
            "augmentation": ClipAugmentation.from_config(cfg, is_train),
            "sampling": ReferenceSampling.from_config(cfg, is_train),
            "tables": {name: get_video_table(name) for name in dataset_names},
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
            DataError: a frame is unreadable, and ``strict``; or a hundred key frames in a row are.
        """
        self._set_up_worker()
        table = self.tables[record["dataset_name"]]
        video_id, key, num_frames = record["video_id"], record["frame_id"], record["num_frames"]
        transform = self.augmentation.sample()
        frames = self.sampling.frames(num_frames, key)
        to_read = self.sampling.frames_to_read(num_frames, key, frames)
        given_before = [
            frame
            for frame in (key, *to_read)
            if not self.repeat_images and self.sampling.given_before(num_frames, key, frame)
        ]
        image = None
        if key not in given_before:
            image = self._read(table, video_id, key, is_key=True)
            if image is None and self.is_train:
                return None
        # At test, each frame is a key frame when its turn comes.
        references = {
            frame: self._read(table, video_id, frame, is_key=not self.is_train)
            for frame in to_read
            if frame not in given_before
        }
        if self.is_train:
            frames, references = _without_unreadable(frames, key, references)
        clip: dict[str, Any] = {
            name: record[name]
            for name in (
                "height", "width", "image_id", "video_id", "frame_id", "file_name", "dataset_name",
            )
        }
        clip["image"] = None if image is None else _to_tensor(image, transform)
        if not self.repeat_images:
            clip["given_before"] = given_before
        clip["reference_frame_ids"] = frames
        clip["reference_images"] = {
            frame: None if reference is None else _to_tensor(reference, transform)
            for frame, reference in references.items()
        }
        if self.is_train:
            clip["instances"] = self._instances(record, transform, tuple(clip["image"].shape[1:]))
        return clip

    def _read(
        self, table: VideoTable, video_id: int, frame: int, is_key: bool
    ) -> np.ndarray | None:
        """Read a frame; None, and a note of it, if it is unreadable and that is to be survived."""
        file_name = table.file_name(video_id, frame)
        try:
            image = self._recent.read(file_name, self.image_format)
            if is_key:
                _check_size(image, table.size(video_id, frame), file_name)
        except DataError as error:
            if self.strict:
                raise
            if table.mark_bad(video_id, frame):
                logger.warning("Frame left out: %s", error)
            image = None
        if is_key:
            self._bad_keys_in_a_row = self._bad_keys_in_a_row + 1 if image is None else 0
        if self._bad_keys_in_a_row >= _MAX_BAD_KEYS_IN_A_ROW:
            raise DataError(
                f"{file_name} and the {_MAX_BAD_KEYS_IN_A_ROW - 1} key frames before it could not "
                "be read; check the dataset's image folder"
            )
        return image

    def _instances(
        self, record: Mapping[str, Any], transform: ClipTransform, shape: tuple[int, int]
    ) -> Any:
        transforms = transform.for_size(record["height"], record["width"])
        annotations = [
            detection_utils.transform_instance_annotations(dict(annotation), transforms, shape)
            for annotation in record["annotations"]
            if not annotation["iscrowd"]
        ]
        instances = detection_utils.annotations_to_instances(annotations, shape)
        return detection_utils.filter_empty_instances(instances)

    def _set_up_worker(self) -> None:
        if not self._in_worker and get_worker_info() is not None:
            # OpenCV's threads don't survive a fork, and workers are the parallelism here.
            cv2.setNumThreads(0)
            self._in_worker = True


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
    frames: list[int], key: int, references: Mapping[int, np.ndarray | None]
) -> tuple[list[int], dict[int, np.ndarray]]:
    """Replace unreadable references by readable ones, in turn, or by the key frame."""
    readable = [frame for frame in frames if references.get(frame) is not None or frame == key]
    stand_ins = readable or [key]
    missing = 0
    replaced = []
    for frame in frames:
        if frame in references and references[frame] is None:
            frame = stand_ins[missing % len(stand_ins)]
            missing += 1
        replaced.append(frame)
    return replaced, {f: image for f, image in references.items() if image is not None}


def _to_tensor(image: np.ndarray, transform: ClipTransform) -> torch.Tensor:
    transforms: T.TransformList = transform.for_size(*image.shape[:2])
    # Tensors pass between processes through shared memory; arrays would be pickled.
    return torch.as_tensor(
        np.ascontiguousarray(transforms.apply_image(image).transpose(2, 0, 1))
    )
