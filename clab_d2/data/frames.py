"""Frames of a clip: read from files, resized and flipped alike."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image, ImageOps

from clab_d2.errors import ConfigError, DataError
from clab_d2.io import refuse_special_file

RESIZE_BACKENDS = ("pillow", "opencv")
IMAGE_FORMATS = ("RGB", "BGR")


def read_frame(file_name: str, image_format: str = "RGB") -> np.ndarray:
    """Read a frame from a picture or, as ``<video file>#<index>``, from a video file.

    An EXIF orientation is applied, as annotation tools do; ILSVRC's pictures carry none. Of 16 bits
    a channel the upper 8 are kept, and transparency is dropped, both as OpenCV does. OpenCV,
    which the official release reads with, decodes whole JPEG files (the pixels are Pillow's, in
    half the time). But depending on version and function it fills up what is missing of a truncated
    one in silence, so anything that isn't a JPEG file with an end goes to Pillow, which complains.

    Args:
        file_name: the picture, or the video file and frame number.
        image_format: order of the colour channels, "RGB" or "BGR".

    Returns:
        uint8 array (H, W, 3).

    Raises:
        DataError: the file is missing, empty, cut off, no picture, or one whose numbers are no
            colours (32 bits a channel).
    """
    # Kept out of the imports above: most datasets have no video files, and it needs more packages.
    from clab_d2.data.video_frames import read_video_frame, split_frame_name

    if split_frame_name(file_name) is not None and not os.path.exists(file_name):
        return _in_order(read_video_frame(file_name), image_format)
    refuse_special_file(file_name)
    try:
        with open(file_name, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise DataError(
            f"{file_name}: no such frame; fetch it, or correct the image folder or the annotations"
        ) from None
    except OSError as error:
        raise DataError(f"{file_name}: cannot be read ({error.strerror})") from None
    if not data:
        raise DataError(f"{file_name}: the file is empty; fetch it again")
    if data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9"):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            return image if image_format == "BGR" else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    try:
        return _in_order(_read_with_pillow(data), image_format)
    except _UnknownRangeError as error:
        raise DataError(
            f"{file_name}: a picture of kind {error}, whose numbers can't be told to be colours; "
            "save it with 8 or 16 bits a channel, as grey or RGB"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split(" <_io")[0]
        raise DataError(f"{file_name}: not a whole picture ({reason}); fetch it again") from None


def _in_order(rgb: np.ndarray, image_format: str) -> np.ndarray:
    return rgb if image_format == "RGB" else np.ascontiguousarray(rgb[:, :, ::-1])


class _UnknownRangeError(Exception):
    """What is black and what is white in a picture, it doesn't say; holds Pillow's mode."""


# Pillow's modes that its conversion to RGB is right for. That of others cuts off all above 255.
_CONVERTIBLE_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
)


def _read_with_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        # Greys of 16 bits; those of PNG and PGM have mode "I" in some versions.
        wide = image.mode.startswith("I;16") or (
            image.mode == "I" and image.format in ("PNG", "PPM")
        )
        if not wide and image.mode not in _CONVERTIBLE_MODES:
            raise _UnknownRangeError(image.mode)
        upright = ImageOps.exif_transpose(image)
        if wide:
            grey = (np.asarray(upright) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        upright.info.pop("transparency", None)
        return np.array(upright.convert("RGB"))


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
class ClipTransform:
    """What is done to every frame of one clip; frames of one size get the same transform.

    Attributes:
        short_edge, max_size, backend: see :func:`resize_transform`.
        flip: "none", "horizontal" or "vertical", after resizing.
    """

    short_edge: int
    max_size: int
    backend: str
    flip: str = "none"

    def for_size(self, h: int, w: int) -> T.TransformList:
        """Return the transform for a frame of the given size."""
        resize = resize_transform(h, w, self.short_edge, self.max_size, self.backend)
        new_h, new_w = (h, w) if isinstance(resize, T.NoOpTransform) else (
            resize.new_h, resize.new_w,
        )
        flips = {
            "none": [],
            "horizontal": [T.HFlipTransform(new_w)],
            "vertical": [T.VFlipTransform(new_h)],
        }
        return T.TransformList([resize, *flips[self.flip]])


class ClipAugmentation:
    """Draws one :class:`ClipTransform` a clip, from NumPy's global state as Detectron2 does.

    Args:
        short_edges: lengths of the shorter edge to choose from ("choice"), or the least and the
            greatest ("range").
        max_size: limit of the longer edge.
        sampling: "choice" or "range".
        flip: "none", "horizontal" or "vertical", done to half of the clips.
        backend: "pillow" or "opencv".
    """

    def __init__(
        self,
        short_edges: Sequence[int],
        max_size: int,
        sampling: str = "choice",
        flip: str = "none",
        backend: str = "pillow",
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

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> ClipAugmentation:
        """Read Detectron2's ``INPUT`` keys and ``INPUT.RESIZE_BACKEND``."""
        backend = cfg.INPUT.RESIZE_BACKEND
        if not is_train:
            return cls((cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST, backend=backend)
        if cfg.INPUT.CROP.ENABLED:
            raise ConfigError("INPUT.CROP.ENABLED: clips can't be cropped; set it to False")
        return cls(
            cfg.INPUT.MIN_SIZE_TRAIN,
            cfg.INPUT.MAX_SIZE_TRAIN,
            cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            cfg.INPUT.RANDOM_FLIP,
            backend,
        )

    def sample(self) -> ClipTransform:
        """Draw what is done to the next clip."""
        if self.sampling == "range":
            short_edge = np.random.randint(self.short_edges[0], self.short_edges[1] + 1)
        else:
            short_edge = np.random.choice(self.short_edges)
        flip = self.flip if self.flip != "none" and np.random.rand() < 0.5 else "none"
        return ClipTransform(int(short_edge), self.max_size, self.backend, flip)

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.short_edges))
        return (
            f"ClipAugmentation(short edge {self.sampling} of ({sizes}), at most {self.max_size}, "
            f"flip {self.flip}, {self.backend})"
        )
