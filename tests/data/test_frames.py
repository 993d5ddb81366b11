"""Reading and resizing: pixel for pixel what OpenCV and Pillow give, and clear errors."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image

from clab_d2.data.frames import read_frame
from clab_d2.errors import DataError


def _picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.fixture
def smooth() -> np.ndarray:
    """A picture that JPEG keeps roughly as it is."""
    return cv2.resize(_picture(30, 40), (320, 240), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg"])
def test_read_frame(tmp_path: Path, smooth: np.ndarray, suffix: str) -> None:
    path = str(tmp_path / f"frame{suffix}")
    Image.fromarray(smooth).save(path)
    expected = np.array(Image.open(path).convert("RGB"))
    frame = read_frame(path)
    assert frame.dtype == np.uint8 and frame.flags.c_contiguous
    np.testing.assert_array_equal(frame, expected)
    np.testing.assert_array_equal(read_frame(path, "BGR"), expected[:, :, ::-1])
    np.testing.assert_array_equal(read_frame(path, "BGR"), cv2.imread(path))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grey_and_turned_pictures(tmp_path: Path, smooth: np.ndarray, suffix: str) -> None:
    path = str(tmp_path / f"frame{suffix}")
    grey = Image.fromarray(smooth).convert("L")
    grey.save(path)
    frame = read_frame(path)
    assert frame.shape == (240, 320, 3) and (frame[..., 0] == frame[..., 2]).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be turned a quarter clockwise
    grey.save(path, exif=exif)
    turned = read_frame(path)
    assert turned.shape == (320, 240, 3)
    np.testing.assert_array_equal(turned, np.rot90(frame, -1))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "not a whole picture"),
        (lambda data: data[:-40], "not a whole picture"),
        (lambda data: b"", "the file is empty"),
        (lambda data: b"<html>not found</html>", r"not a whole picture \(cannot identify image"),
        (lambda data: b"\xff\xd8 nothing \xff\xd9", "not a whole picture"),
    ],
)
def test_damaged_pictures(
    tmp_path: Path, smooth: np.ndarray, suffix: str, damage, message: str
) -> None:
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(smooth).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        read_frame(str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jpg: no such frame; .*image folder"):
        read_frame(str(tmp_path / "none.jpg"))
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_frame(str(tmp_path))


def _sixteen_bits(h: int = 24, w: int = 32) -> np.ndarray:
    return np.linspace(0, 65535, h * w).astype(np.uint16).reshape(h, w)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_grey_of_16_bits_keeps_its_upper_8(tmp_path: Path, suffix: str) -> None:
    grey = _sixteen_bits()
    path = str(tmp_path / f"frame{suffix}")
    cv2.imwrite(path, grey)
    frame = read_frame(path)
    assert frame.dtype == np.uint8 and frame.flags.c_contiguous
    np.testing.assert_array_equal(frame, np.repeat((grey >> 8)[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_frame(path, "BGR"), cv2.imread(path))


def test_grey_of_16_bits_is_turned_upright(tmp_path: Path) -> None:
    grey = _sixteen_bits()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).save(tmp_path / "frame.png", exif=exif)
    frame = read_frame(str(tmp_path / "frame.png"))
    np.testing.assert_array_equal(frame[..., 0], np.rot90(grey >> 8, -1))


def test_grey_of_10_bits_fills_the_range(tmp_path: Path) -> None:
    (tmp_path / "frame.pgm").write_bytes(b"P5 2 1 1023\n" + bytes([3, 255, 1, 255]))
    assert read_frame(str(tmp_path / "frame.pgm"))[0, :, 0].tolist() == [255, 127]


def _of_mode(mode: str) -> Image.Image:
    colour = Image.fromarray(_picture(24, 32))
    if mode == "RGBA":
        colour.putalpha(Image.fromarray(_picture(24, 32, seed=1)[..., 0]))
    return colour.quantize(16) if mode == "P" else colour.convert(mode)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        # Of a TIFF with transparency, OpenCV darkens the colours by it.
        *((".tif", mode) for mode in ("1", "L", "P", "RGB", "CMYK")),
        pytest.param(
            ".tif",
            "YCbCr",
            marks=pytest.mark.skipif(
                int(PIL.__version__.partition(".")[0]) < 13,
                reason="Pillow before 13 can't read such a TIFF, not even its own",
            ),
        ),
        *((".jpg", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")),
    ],
)
def test_pictures_of_any_mode_are_read_as_opencv_reads_them(
    tmp_path: Path, suffix: str, mode: str
) -> None:
    path = str(tmp_path / f"frame{suffix}")
    _of_mode(mode).save(path)
    frame = read_frame(path, "BGR")
    assert frame.dtype == np.uint8 and frame.shape == (24, 32, 3)
    # Colours of another space (YCbCr) are rounded here and there.
    np.testing.assert_allclose(frame.astype(int), cv2.imread(path), atol=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [3, bytes(range(0, 240, 15))], ids=["one", "shades"])
def test_a_palette_with_transparency_keeps_its_colours(
    tmp_path: Path, transparency: int | bytes
) -> None:
    path = str(tmp_path / "frame.png")
    _of_mode("P").save(path, transparency=transparency)
    np.testing.assert_array_equal(read_frame(path, "BGR"), cv2.imread(path))


@pytest.mark.parametrize("bits", ["rgb", "rgba"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_of_16_bits(tmp_path: Path, bits: str, suffix: str) -> None:
    grey = _sixteen_bits()
    channels = [grey, grey[::-1], grey[:, ::-1], np.full_like(grey, 300)]
    path = str(tmp_path / f"frame{suffix}")
    cv2.imwrite(path, np.stack(channels[: len(bits)], axis=2))
    np.testing.assert_allclose(read_frame(path, "BGR").astype(int), cv2.imread(path), atol=1)


@pytest.mark.parametrize("kind", ["F", "I", "LAB"])
def test_numbers_that_may_be_no_colours_are_refused(tmp_path: Path, kind: str) -> None:
    picture = Image.fromarray(_picture(8, 8))
    picture = picture.convert("L").convert(kind) if kind != "LAB" else picture.convert("LAB")
    path = tmp_path / "frame.tif"
    picture.save(path)
    with pytest.raises(DataError, match=f"a picture of kind {kind}, .*save it with 8 or 16 bits"):
        read_frame(str(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "frame.png")
    with pytest.raises(DataError, match=r"frame.png: a named pipe, not a file"):
        read_frame(str(tmp_path / "frame.png"))
