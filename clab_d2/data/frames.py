"""Frames read from pictures and video files."""

from __future__ import annotations

import io
import os

import cv2
import numpy as np
from PIL import Image, ImageOps

from clab_d2.errors import DataError
from clab_d2.io import refuse_special_file

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
