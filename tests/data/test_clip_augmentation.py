"""What is done to the frames of a clip: as Detectron2 and the release do it, and to all alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clab_d2.config import get_clab_cfg
from clab_d2.data.clip_augmentation import (
    ClipAugmentation,
    ClipCrop,
    ClipTransform,
    resize_transform,
)
from clab_d2.errors import ConfigError


def _picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


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


_CROPS = [
    ("relative", (0.5, 0.8)),
    ("relative_range", (0.3, 0.6)),
    ("absolute", (20, 500)),
    ("absolute_range", (10, 30)),
]


@pytest.mark.parametrize(("kind", "size"), _CROPS)
def test_sizes_of_crops_are_those_of_detectron2(kind: str, size: tuple[float, float]) -> None:
    np.random.seed(0)
    augmentation = ClipAugmentation((0,), 999, crop=(kind, size))
    ours, theirs = set(), set()
    for _ in range(3000):
        crop = augmentation.sample().crop.for_size(40, 60)
        assert 0 <= crop.x0 <= 60 - crop.w and 0 <= crop.y0 <= 40 - crop.h
        ours.add((crop.h, crop.w))
        theirs.add(T.RandomCrop(kind, size).get_crop_size((40, 60)))
    edges = [(min(v), max(v)) for sizes in (ours, theirs) for v in zip(*sizes, strict=True)]
    assert edges[:2] == edges[2:]
    if kind in ("relative", "absolute"):
        assert ours == theirs


def test_all_frames_of_a_clip_are_cropped_alike() -> None:
    np.random.seed(0)
    augmentation = ClipAugmentation((0,), 999, crop=("relative_range", (0.3, 0.3)))
    clip = augmentation.sample()
    image = _picture(40, 60)
    first, again = (clip.for_size(40, 60).apply_image(image) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    large = clip.for_size(80, 120)
    small_crop, large_crop = clip.crop.for_size(40, 60), large.transforms[0]
    assert abs(large_crop.x0 - 2 * small_crop.x0) <= 3 and abs(large_crop.h - 2 * small_crop.h) <= 1
    assert augmentation.sample() != clip


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_boxes_follow_the_pixels_of_a_crop(flip: str) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[18:22, 28:33] = 255
    crop = ClipCrop("relative", (0.8, 0.8), (0.0, 0.0, 0.3, 0.6))
    transform = ClipTransform(64, 1000, "pillow", flip, crop).for_size(40, 60)
    moved = transform.apply_image(image)
    assert moved.shape == (64, 96, 3)
    ys, xs = np.nonzero(moved[:, :, 0] > 127)
    box = transform.apply_box(np.array([[28.0, 18.0, 33.0, 22.0]]))[0]
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], box, atol=1)


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
        ("INPUT.CROP.TYPE", "square", "INPUT.CROP.TYPE is 'square'; it must be one of relative"),
        ("INPUT.CROP.SIZE", [0.5, 1.5], r"INPUT.CROP.SIZE is \[0.5, 1.5\]; .*'relative_range' .*1"),
        ("INPUT.CROP.SIZE", [0.9], r"INPUT.CROP.SIZE is \[0.9\]"),
    ],
)
def test_contradicting_config(key: str, value, message: str) -> None:
    cfg = get_clab_cfg()
    cfg.merge_from_list([key, value, "INPUT.CROP.ENABLED", True])
    with pytest.raises(ConfigError, match=message):
        ClipAugmentation.from_config(cfg, is_train=True)
