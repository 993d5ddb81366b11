from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import ImageList

from clab_d2.data.clip_augmentation import ClipAugmentation
from clab_d2.errors import DataError
from clab_d2.runtime.preprocessing import Preprocessing


def preprocessing(**changed: object) -> Preprocessing:
    arguments = {
        "channels": "RGB", "backend": "opencv", "short_edge": 64, "max_size": 100,
        "pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375),
        "divisibility": 16,
    }  # fmt: skip
    return Preprocessing(**{**arguments, **changed})


@pytest.mark.parametrize("backend", ["opencv", "pillow"])
@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (90, 300), (301, 77), (64, 64), (720, 1280)])
def test_frames_are_resized_as_in_the_evaluation(backend: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for short_edge, max_size in ((64, 100), (0, 100), (61, 61)):
        ours = preprocessing(backend=backend, short_edge=short_edge, max_size=max_size)
        transform = ClipAugmentation((short_edge,), max_size, backend=backend).sample()
        expected = transform.for_size(*shape).apply_image(image)
        assert np.array_equal(ours.resize(image), expected)


def test_channels_are_the_models() -> None:
    image = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
    plain = preprocessing(short_edge=0)
    assert np.array_equal(
        preprocessing(short_edge=0, channels="BGR").resize(image), plain.resize(image)[..., ::-1]
    )


def test_normalised_and_padded_as_by_the_detector() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    ours = preprocessing()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (ours.pixel_mean, ours.pixel_std))
    normalised = (torch.from_numpy(image.transpose(2, 0, 1).copy()) - mean) / std
    expected = ImageList.from_tensors([normalised], 16).tensor
    assert np.array_equal(ours.normalise(image), expected.numpy())


def test_another_size_than_the_graphs_is_refused() -> None:
    fixed = preprocessing(size=(64, 96))
    assert fixed.normalise(np.zeros((60, 90, 3), np.uint8)).shape == (1, 3, 64, 96)
    with pytest.raises(DataError, match="64x112 pixels, but the model was exported for 64x96"):
        fixed.normalise(np.zeros((60, 100, 3), np.uint8))
