"""Reading and resizing: pixel for pixel what OpenCV and Pillow give, and clear errors."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clab_d2.config import get_clab_cfg
from clab_d2.data.frames import ClipAugmentation, ClipTransform, read_frame, resize_transform
from clab_d2.errors import ConfigError, DataError


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
        *((".tif", mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr")),
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


_sizes = st.tuples(st.integers(8, 90), st.integers(8, 90))


@settings(max_examples=60, deadline=None)
@given(_sizes, st.integers(8, 80), st.integers(0, 60))
def test_pillow_backend_is_detectron2s(size: tuple[int, int], short: int, extra: int) -> None:
    image = _picture(*size)
    max_size = short + extra
    resized = resize_transform(*size, short, max_size, "pillow").apply_image(image)
    theirs = T.ResizeShortestEdge([short], max_size, "choice").get_transform(image)
    np.testing.assert_array_equal(resized, theirs.apply_image(image))
    h, w = resized.shape[:2]
    np.testing.assert_array_equal(
        resized, np.array(Image.fromarray(image).resize((w, h), Image.BILINEAR))
    )


@settings(max_examples=60, deadline=None)
@given(_sizes, st.integers(8, 80), st.integers(0, 60))
def test_opencv_backend_is_the_releases(size: tuple[int, int], short: int, extra: int) -> None:
    image = _picture(*size)
    max_size = short + extra
    transform = resize_transform(*size, short, max_size, "opencv")
    # MMCV: the factor that fits both edges; each new edge is int(edge * factor + 0.5).
    factor = min(max_size / max(size), short / min(size))
    h, w = (int(edge * factor + 0.5) for edge in size)
    expected = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(transform.apply_image(image), expected)
    box = np.array([[1.0, 2.0, size[1], size[0]]])
    np.testing.assert_allclose(
        transform.apply_box(box), box * [w / size[1], h / size[0], w / size[1], h / size[0]]
    )
    assert transform.inverse().apply_image(expected).shape == image.shape
    mask = transform.apply_segmentation(np.eye(*size, dtype=np.uint8))
    assert mask.shape == (h, w) and set(np.unique(mask)) <= {0, 1}


def test_the_backends_differ() -> None:
    image = _picture(80, 100)
    pillow, opencv = (
        resize_transform(80, 100, 20, 100, backend).apply_image(image).astype(int)
        for backend in ("pillow", "opencv")
    )
    assert pillow.shape == opencv.shape
    # Noise made smaller: Pillow averages it away, OpenCV keeps most of it.
    assert opencv.std() > 2 * pillow.std()


def test_the_papers_sizes() -> None:
    """Short side 600, long side at most 1000.

    720 x 1280, ImageNet VID's commonest size, scales to 562.5: Detectron2, which multiplies twice,
    comes out just below it and rounds down, the release rounds up.
    """
    for backend, of_720 in (("pillow", (562, 1000)), ("opencv", (563, 1000))):
        for size, expected in [((720, 1280), of_720), ((480, 640), (600, 800))]:
            transform = resize_transform(*size, 600, 1000, backend)
            assert (transform.new_h, transform.new_w) == expected


@pytest.mark.parametrize("backend", ["pillow", "opencv"])
def test_short_edge_zero_leaves_the_image(backend: str) -> None:
    image = _picture(20, 30)
    clip = ClipTransform(0, 100, backend, "horizontal")
    np.testing.assert_array_equal(clip.for_size(20, 30).apply_image(image), image[:, ::-1])


@pytest.mark.parametrize("backend", ["pillow", "opencv"])
@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_boxes_follow_the_pixels(backend: str, flip: str) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = 255
    transform = ClipTransform(80, 1000, backend, flip).for_size(40, 60)
    ys, xs = np.nonzero(transform.apply_image(image)[:, :, 0] > 127)
    box = transform.apply_box(np.array([[30.0, 10.0, 50.0, 20.0]]))[0]
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], box, atol=1)


def test_augmentation_draws_sizes_and_flips() -> None:
    np.random.seed(0)
    drawn = [ClipAugmentation((10, 20), 99, "choice", "horizontal").sample() for _ in range(400)]
    assert {clip.short_edge for clip in drawn} == {10, 20}
    assert 150 < sum(clip.flip == "horizontal" for clip in drawn) < 250
    ranged = {ClipAugmentation((10, 13), 99, "range").sample().short_edge for _ in range(100)}
    assert ranged == {10, 11, 12, 13}


def test_augmentation_from_config() -> None:
    cfg = get_clab_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (500, 600)
    cfg.INPUT.RESIZE_BACKEND = "opencv"
    training = ClipAugmentation.from_config(cfg, is_train=True)
    assert training.short_edges == (500, 600) and training.flip == "horizontal"
    test = ClipAugmentation.from_config(cfg, is_train=False)
    assert test.sample() == ClipTransform(800, 1333, "opencv", "none")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.RESIZE_BACKEND", "pil", "INPUT.RESIZE_BACKEND is 'pil'; .*'pillow', 'opencv'"),
        ("INPUT.RANDOM_FLIP", "both", "INPUT.RANDOM_FLIP is 'both'"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "SAMPLING is 'range' with 1 size"),
        ("INPUT.CROP.ENABLED", True, "INPUT.CROP.ENABLED: clips can't be cropped"),
    ],
)
def test_contradicting_config(key: str, value, message: str) -> None:
    cfg = get_clab_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=message):
        ClipAugmentation.from_config(cfg, is_train=True)
