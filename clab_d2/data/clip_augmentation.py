"""What is done to the frames of a clip, to all of them alike: crop, resize, flip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from clab_d2.errors import ConfigError

RESIZE_BACKENDS = ("pillow", "opencv")


class OpenCVResizeTransform(T.ResizeTransform):
    """Resize with ``cv2.resize``'s bilinear interpolation, which the official release uses.

    It takes the four nearest pixels whatever the scale, where Pillow averages over all pixels that
    an output pixel covers; when making pictures smaller the two differ visibly.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int) -> None:
        super().__init__(h, w, new_h, new_w)

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (h, w) or (h, w, c) to the new size, keeping the type."""
        assert img.shape[:2] == (self.h, self.w), (img.shape, self.h, self.w)
        method = cv2.INTER_NEAREST if interp == Image.NEAREST else cv2.INTER_LINEAR
        resized = cv2.resize(img, (self.new_w, self.new_h), interpolation=method)
        return resized if resized.ndim == img.ndim else resized[..., None]

    def inverse(self) -> OpenCVResizeTransform:
        """Return the resize back to the old size."""
        return OpenCVResizeTransform(self.new_h, self.new_w, self.h, self.w)


def resize_transform(
    h: int, w: int, short_edge: int, max_size: int, backend: str = "pillow"
) -> T.Transform:
    """Return the transform to a given short edge, the long one at most ``max_size``.

    Each backend rounds the size as its origin does: "pillow" as Detectron2, "opencv" as the
    official release (the smaller of the two edges' scale factors, then ``int(x + 0.5)``). So the
    two may differ by a pixel: 1280x720 becomes 1000x562 or 1000x563.

    Args:
        h, w: size of the image in pixels.
        short_edge: target length of the shorter edge; 0 leaves the image as it is.
        max_size: limit of the longer edge.
        backend: "pillow" or "opencv".
    """
    if short_edge == 0:
        return T.NoOpTransform()
    if backend == "pillow":
        new_h, new_w = T.ResizeShortestEdge.get_output_shape(h, w, short_edge, max_size)
        return T.ResizeTransform(h, w, new_h, new_w)
    scale = min(max(max_size, short_edge) / max(h, w), min(max_size, short_edge) / min(h, w))
    return OpenCVResizeTransform(h, w, int(h * scale + 0.5), int(w * scale + 0.5))


@dataclass(frozen=True)
class ClipCrop:
    """The part of every frame of one clip that is kept; Detectron2's ``RandomCrop``, drawn once.

    Attributes:
        kind: ``INPUT.CROP.TYPE``: "relative", "relative_range", "absolute" or "absolute_range".
        size: ``INPUT.CROP.SIZE``, (height, width): shares of the frame, or pixels.
        draws: four numbers in [0, 1): of the height and the width (of the "range" kinds), and of
            the top and the left edge.
    """

    kind: str
    size: tuple[float, float]
    draws: tuple[float, float, float, float]

    def for_size(self, h: int, w: int) -> T.CropTransform:
        """The crop of a frame of the given size; frames of one size get the same one."""
        height, top = self._along(h, self.size[0], self.draws[0], self.draws[2])
        width, left = self._along(w, self.size[1], self.draws[1], self.draws[3])
        return T.CropTransform(left, top, width, height, orig_w=w, orig_h=h)

    def _along(self, length: int, size: float, draw: float, place: float) -> tuple[int, int]:
        """Length and start of the crop along one side."""
        if self.kind == "relative":
            kept = int(length * size + 0.5)
        elif self.kind == "relative_range":
            kept = int(length * (size + draw * (1 - size)) + 0.5)
        elif self.kind == "absolute":
            kept = min(int(size), length)
        else:  # the second number bounds both sides, as in Detectron2
            least, most = min(length, int(self.size[0])), min(length, int(self.size[1]))
            kept = least + int(draw * (most - least + 1))
        kept = max(kept, 1)
        return kept, int(place * (length - kept + 1))


@dataclass(frozen=True)
class ClipTransform:
    """What is done to every frame of one clip; frames of one size get the same transform.

    Attributes:
        short_edge, max_size, backend: see :func:`resize_transform`.
        flip: "none", "horizontal" or "vertical", after resizing.
        crop: what is cut out before resizing; None for the whole frame.
    """

    short_edge: int
    max_size: int
    backend: str
    flip: str = "none"
    crop: ClipCrop | None = None

    def for_size(self, h: int, w: int) -> T.TransformList:
        """Return the transform for a frame of the given size."""
        crops = []
        if self.crop is not None:
            crops = [self.crop.for_size(h, w)]
            h, w = crops[0].h, crops[0].w
        resize = resize_transform(h, w, self.short_edge, self.max_size, self.backend)
        new_h, new_w = (h, w) if isinstance(resize, T.NoOpTransform) else (
            resize.new_h, resize.new_w,
        )
        flips = {
            "none": [],
            "horizontal": [T.HFlipTransform(new_w)],
            "vertical": [T.VFlipTransform(new_h)],
        }
        return T.TransformList([*crops, resize, *flips[self.flip]])


class ClipAugmentation:
    """Draws one :class:`ClipTransform` a clip, from NumPy's global state as Detectron2 does.

    Args:
        short_edges: lengths of the shorter edge to choose from ("choice"), or the least and the
            greatest ("range").
        max_size: limit of the longer edge.
        sampling: "choice" or "range".
        flip: "none", "horizontal" or "vertical", done to half of the clips.
        backend: "pillow" or "opencv".
        crop: kind and size of a :class:`ClipCrop`; None crops nothing.
    """

    def __init__(
        self,
        short_edges: Sequence[int],
        max_size: int,
        sampling: str = "choice",
        flip: str = "none",
        backend: str = "pillow",
        crop: tuple[str, tuple[float, float]] | None = None,
    ) -> None:
        if backend not in RESIZE_BACKENDS:
            raise ConfigError(
                f"INPUT.RESIZE_BACKEND is {backend!r}; it must be one of {RESIZE_BACKENDS}"
            )
        if flip not in ("none", "horizontal", "vertical"):
            raise ConfigError(
                f"INPUT.RANDOM_FLIP is {flip!r}; it must be none, horizontal or vertical"
            )
        if sampling not in ("choice", "range") or (sampling == "range" and len(short_edges) != 2):
            raise ConfigError(
                f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {sampling!r} with {len(short_edges)} size(s); "
                'it must be "choice", or "range" with two sizes in INPUT.MIN_SIZE_TRAIN'
            )
        self.short_edges = tuple(short_edges)
        self.max_size = max_size
        self.sampling = sampling
        self.flip = flip
        self.backend = backend
        self.crop = crop
        if crop is not None:
            _check_crop(*crop)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> ClipAugmentation:
        """Read Detectron2's ``INPUT`` keys and ``INPUT.RESIZE_BACKEND``."""
        backend = cfg.INPUT.RESIZE_BACKEND
        if not is_train:
            return cls((cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST, backend=backend)
        crop = cfg.INPUT.CROP
        return cls(
            cfg.INPUT.MIN_SIZE_TRAIN,
            cfg.INPUT.MAX_SIZE_TRAIN,
            cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            cfg.INPUT.RANDOM_FLIP,
            backend,
            (crop.TYPE, tuple(crop.SIZE)) if crop.ENABLED else None,
        )

    def sample(self) -> ClipTransform:
        """Draw what is done to the next clip."""
        if self.sampling == "range":
            short_edge = np.random.randint(self.short_edges[0], self.short_edges[1] + 1)
        else:
            short_edge = np.random.choice(self.short_edges)
        flip = self.flip if self.flip != "none" and np.random.rand() < 0.5 else "none"
        crop = None
        if self.crop is not None:
            crop = ClipCrop(*self.crop, tuple(np.random.rand(4)))
        return ClipTransform(int(short_edge), self.max_size, self.backend, flip, crop)

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.short_edges))
        return (
            f"ClipAugmentation(short edge {self.sampling} of ({sizes}), at most {self.max_size}, "
            f"flip {self.flip}, {self.backend}, crop {self.crop})"
        )


def _check_crop(kind: str, size: tuple[float, float]) -> None:
    kinds = ("relative", "relative_range", "absolute", "absolute_range")
    if kind not in kinds:
        raise ConfigError(f"INPUT.CROP.TYPE is {kind!r}; it must be one of {', '.join(kinds)}")
    relative = kind.startswith("relative")
    fits = len(size) == 2 and all(0 < part <= 1 if relative else part >= 1 for part in size)
    if not fits or (kind == "absolute_range" and size[0] > size[1]):
        want = "two shares above 0, at most 1" if relative else "two numbers of pixels"
        raise ConfigError(f"INPUT.CROP.SIZE is {list(size)}; INPUT.CROP.TYPE {kind!r} takes {want}")
