"""Clips: the right frames, treated alike, and what becomes of a frame that can't be read."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from clab_d2.data.frame_sampling import adaptive_references, causal_window, fixed_stride_window
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import MadeDataset, MakeDataset

from clab_d2.data import VIDDatasetMapper, get_video_table
from clab_d2.data import dataset_mapper as dataset_mapper_module
from clab_d2.data.dataset_mapper import ClipImages, ReferenceSampling
from clab_d2.errors import ConfigError, DataError

MakeCfg = Callable[..., CfgNode]
_TRAINING = {"MODEL.CONTRASTIVE.ENABLED": True}


def _green(image: torch.Tensor) -> int:
    """The frame number that the made datasets paint into each frame."""
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    values = image[1].unique()
    assert len(values) == 1
    return int(values)


def _records(dataset: MadeDataset) -> list[dict[str, Any]]:
    return DatasetCatalog.get(dataset.name)


def test_training_clip(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((12, 1), stills=1)
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True)
    for record in _records(dataset):
        key, video_id = record["frame_id"], record["video_id"]
        for _ in range(5):
            clip = mapper(record)
            frames, images = clip["reference_frame_ids"], clip["reference_images"]
            assert len(frames) == 2
            assert set(images) == set(frames) - {key}, "each is read once, the key never again"
            assert all(_green(image) == frame for frame, image in images.items())
            assert _green(clip["image"]) == key
            if video_id == 1:
                assert key not in frames
                assert len(set(frames)) == (2 if 0 < key < 11 else 1)
            else:
                assert frames == [key, key] == [0, 0] and images == {}
        expected = {k: record[k] for k in ("height", "width", "image_id", "video_id", "frame_id")}
        expected |= {k: record[k] for k in ("file_name", "dataset_name")}
        assert expected.items() <= clip.items()
        assert clip["instances"].gt_boxes.tensor.tolist() == [[2, 4, 12, 12]]
        assert clip["instances"].gt_classes.tolist() == [record["annotations"][0]["category_id"]]
        assert clip["instances"].image_size == (24, 32)
        assert "annotations" not in clip and "annotations" in record


def test_single_frame_models_get_no_references(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    dataset = make_dataset((4,))
    single = {"MODEL.SELSA.ENABLED": False, "MODEL.TEMPORAL_ROI_ALIGN.ENABLED": False}
    record = _records(dataset)[1]
    for is_train in (True, False):
        clip = VIDDatasetMapper(make_cfg(dataset, **single), is_train=is_train)(record)
        assert (clip["reference_frame_ids"], clip["reference_images"]) == ([], {})
        assert ("instances" in clip) == is_train
    # The contrastive branch compares frames: it needs them in training, and only there.
    contrastive = make_cfg(dataset, **single, **_TRAINING)
    assert len(VIDDatasetMapper(contrastive, is_train=True)(record)["reference_frame_ids"]) == 2
    assert VIDDatasetMapper(contrastive, is_train=False)(record)["reference_frame_ids"] == []


@pytest.mark.parametrize("num_frames", [1, 2, 5, 20])
@pytest.mark.parametrize(
    ("sampling", "num", "stride"),
    [("adaptive", 14, 1), ("fixed", 6, 1), ("fixed", 4, 3), ("causal", 4, 1), ("causal", 3, 2)],
)
def test_reference_images_fill_the_memory(
    make_dataset: MakeDataset,
    make_cfg: MakeCfg,
    sampling: str,
    num: int,
    stride: int,
    num_frames: int,
) -> None:
    """A memory of the last clip's frames, and of the keys, always has what a clip needs."""
    dataset = make_dataset((num_frames, 2))
    cfg = make_cfg(
        dataset,
        **{
            "TEST.REFERENCES.SAMPLING": sampling,
            "TEST.REFERENCES.NUM": num,
            "TEST.REFERENCES.STRIDE": stride,
        },
    )
    mapper = VIDDatasetMapper(cfg, is_train=False)
    memory: set[int] = set()
    for record in _records(dataset):
        key, length = record["frame_id"], record["num_frames"]
        clip = mapper(record)
        frames = {
            "adaptive": [*adaptive_references(length, num), key],
            "fixed": fixed_stride_window(length, key, num // 2, stride),
            "causal": causal_window(key, num, stride),
        }[sampling]
        assert clip["reference_frame_ids"] == frames
        assert all(_green(image) == frame for frame, image in clip["reference_images"].items())
        assert key not in clip["reference_images"]
        assert "instances" not in clip
        entering = set(clip["reference_images"]) | {key}
        memory = entering if key == 0 else memory | entering
        assert set(frames) <= memory
        memory &= {*frames, *(adaptive_references(length, num) if sampling == "adaptive" else [])}


def _save_gradient(file: Any, size: tuple[int, int]) -> None:
    """A picture whose red tells right from left."""
    row = np.linspace(0, 255, size[1]).astype(np.uint8)
    cv2.imwrite(str(file), np.repeat(np.tile(row, (size[0], 1))[..., None], 3, axis=2))


@pytest.mark.parametrize("backend", ["pillow", "opencv"])
def test_one_augmentation_for_the_whole_clip(
    make_dataset: MakeDataset, make_cfg: MakeCfg, backend: str
) -> None:
    """Flip and short edge are shared, also with a reference of another size."""
    dataset = make_dataset((3,), size=(40, 60))
    for frame, size in enumerate([(40, 60), (40, 60), (30, 80)]):
        _save_gradient(dataset.frame_file(1, frame), size)
    dataset.data["images"][2] |= {"height": 30, "width": 80}
    dataset.save()
    cfg = make_cfg(
        dataset,
        **{
            "INPUT.MIN_SIZE_TRAIN": (20, 50),
            "INPUT.RANDOM_FLIP": "horizontal",
            "INPUT.RESIZE_BACKEND": backend,
        },
    )
    mapper = VIDDatasetMapper(cfg, is_train=True)
    record = _records(dataset)[1]
    seen = set()
    for _ in range(40):
        clip = mapper(record)
        images = [clip["image"], clip["reference_images"][0], clip["reference_images"][2]]
        flipped = {bool(image[0, 0, 0] > image[0, 0, -1]) for image in images}
        short = {min(image.shape[1:]) for image in images}
        assert len(flipped) == len(short) == 1
        assert torch.equal(images[0], images[1])
        assert images[2].shape[2] > images[0].shape[2]
        scale = short.copy().pop() / 40
        x1, y1, x2, y2 = (clip["instances"].gt_boxes.tensor[0] / scale).tolist()
        left, right = (48, 58) if flipped == {True} else (2, 12)
        assert (x1, y1, x2, y2) == pytest.approx((left, 4, right, 12))
        seen.add((flipped.pop(), short.pop()))
    assert len(seen) == 4, "both flips at both sizes were drawn"


def test_same_seed_same_clips(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((20,))
    cfg = make_cfg(dataset, **{"INPUT.RANDOM_FLIP": "horizontal", "INPUT.MIN_SIZE_TRAIN": (9, 12)})

    def draw(seed: int) -> list[Any]:
        random.seed(seed)
        np.random.seed(seed)
        mapper = VIDDatasetMapper(cfg, is_train=True)
        clips = [mapper(record) for record in _records(dataset)]
        return [(c["reference_frame_ids"], c["instances"].gt_boxes.tensor.tolist()) for c in clips]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_objects_that_are_no_targets(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((2,))
    template = dataset.data["annotations"][0]
    dataset.data["annotations"] += [
        {**template, "id": 10, "iscrowd": True},
        {**template, "id": 11, "bbox": [3, 3, 0, 5]},
        {**template, "id": 12, "bbox": [28, 20, 10, 10]},
    ]
    dataset.save()
    clip = VIDDatasetMapper(make_cfg(dataset), is_train=True)(_records(dataset)[0])
    # The crowd and the box without width are left out, the one across the border is clipped.
    assert clip["instances"].gt_boxes.tensor.tolist() == [[2, 4, 12, 12], [28, 20, 32, 24]]


def test_bgr(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((2, 2))
    record = _records(dataset)[2]
    rgb = VIDDatasetMapper(make_cfg(dataset), is_train=False)(record)["image"]
    cfg = make_cfg(dataset, **{"INPUT.FORMAT": "BGR"})
    bgr = VIDDatasetMapper(cfg, is_train=False)(record)["image"]
    assert int(rgb[0, 0, 0]) == 2, "the video's number is painted in red"
    assert torch.equal(bgr, rgb.flip(0))


@pytest.mark.parametrize("is_train", [True, False])
def test_strict_stops_at_a_bad_frame(
    make_dataset: MakeDataset, make_cfg: MakeCfg, is_train: bool
) -> None:
    dataset = make_dataset((3,))
    bad = dataset.frame_file(1, 2)
    bad.write_bytes(bad.read_bytes()[:40])
    mapper = VIDDatasetMapper(make_cfg(dataset, **{"DATALOADER.STRICT": True}), is_train=is_train)
    for key in (0, 2):  # as a reference, and as the key frame
        with pytest.raises(DataError, match=f"{bad}: not a whole picture"):
            for _ in range(50):
                mapper(_records(dataset)[key])


def test_bad_key_frame(
    make_dataset: MakeDataset, make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_dataset((6,))
    dataset.frame_file(1, 3).unlink()
    record = _records(dataset)[3]
    training = VIDDatasetMapper(make_cfg(dataset), is_train=True)
    assert training(record) is None, "Detectron2's loader then draws another"
    assert training(record) is None
    clip = VIDDatasetMapper(make_cfg(dataset), is_train=False)(record)
    assert clip["image"] is None and clip["frame_id"] == 3
    assert clip["reference_frame_ids"] == [*adaptive_references(6, 14), 3]
    assert caplog.text.count(f"Frame left out: {dataset.frame_file(1, 3)}: no such frame") == 1
    assert get_video_table(dataset.name).bad_frames() == [str(dataset.frame_file(1, 3))]


def test_bad_references_in_training(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((3,))
    record = _records(dataset)[1]
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True)
    dataset.frame_file(1, 0).write_bytes(b"")
    clip = mapper(record)
    assert clip["reference_frame_ids"] == [2, 2], "the other one stands in"
    assert list(clip["reference_images"]) == [2] and _green(clip["reference_images"][2]) == 2
    dataset.frame_file(1, 2).write_bytes(b"")
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True)  # one that holds no frame yet
    clip = mapper(record)
    assert clip["reference_frame_ids"] == [1, 1], "the key frame stands in"
    assert clip["reference_images"] == {}


def test_bad_reference_at_test(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((5,))
    dataset.frame_file(1, 2).write_bytes(b"")
    clip = VIDDatasetMapper(make_cfg(dataset), is_train=False)(_records(dataset)[0])
    images = clip["reference_images"]
    assert sorted(images) == [1, 2, 3, 4]
    assert [frame for frame, image in images.items() if image is None] == [2]


def test_size_that_contradicts_the_annotations(
    make_dataset: MakeDataset, make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_dataset((3,), size=(24, 32))
    dataset.data["images"][1]["width"] = 33
    dataset.save()
    records = _records(dataset)
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True)
    assert mapper(records[1]) is None, "its boxes can't be trusted"
    assert "the picture is 32x24, but the annotations say 33x24" in caplog.text
    references = [set(mapper(records[0])["reference_images"]) for _ in range(30)]
    assert {1} in references, "a reference has no boxes, and serves at any size"


@pytest.mark.parametrize("is_train", [True, False])
def test_nothing_readable_at_all_ends_the_job(
    make_dataset: MakeDataset, make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch, is_train: bool
) -> None:
    dataset = make_dataset((8,))
    monkeypatch.setattr(dataset_mapper_module, "_MAX_BAD_KEYS_IN_A_ROW", 3)
    cfg = make_cfg(dataset, **{"TEST.REFERENCES.SAMPLING": "causal"})
    mapper = VIDDatasetMapper(cfg, is_train=is_train)
    records = _records(dataset)
    for frame in (1, 2, 4, 5, 6):
        dataset.frame_file(1, frame).unlink()
    for record in records[:6]:
        mapper(record)  # never three in a row
    with pytest.raises(DataError, match=r"000006.png and the 2 key frames before .* image folder"):
        mapper(records[6])


def test_references_at_test_are_key_frames_to_come(
    make_dataset: MakeDataset, make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count where nothing can be read, and their size must be that of the annotations."""
    dataset = make_dataset((5,), size=(24, 32))
    dataset.data["images"][2]["width"] = 33
    dataset.save()
    clip = VIDDatasetMapper(make_cfg(dataset), is_train=False)(_records(dataset)[0])
    images = clip["reference_images"]
    assert [frame for frame, image in images.items() if image is None] == [2]
    assert get_video_table(dataset.name).bad_frames() == [str(dataset.frame_file(1, 2))]
    monkeypatch.setattr(dataset_mapper_module, "_MAX_BAD_KEYS_IN_A_ROW", 3)
    for frame in range(1, 5):
        dataset.frame_file(1, frame).unlink()
    with pytest.raises(DataError, match=r"000003.png and the 2 key frames before"):
        VIDDatasetMapper(make_cfg(dataset), is_train=False)(_records(dataset)[0])


@settings(deadline=None, max_examples=150)
@given(
    num_frames=st.integers(1, 40),
    method=st.sampled_from(["adaptive", "fixed", "causal", "none"]),
    half=st.integers(1, 8),
    stride=st.integers(1, 6),
)
def test_what_is_left_out_of_a_clip_is_there(
    num_frames: int, method: str, half: int, stride: int
) -> None:
    """Each frame is read once, and held no longer than it is needed."""
    sampling = ReferenceSampling(method, 2 * half, stride)
    images, read = ClipImages(sampling), []
    for key in range(num_frames):
        window = sampling.frames(num_frames, key)
        wanted = [key, *sampling.frames_to_read(num_frames, key, window)]
        left_out = [f for f in wanted if sampling.given_before(num_frames, key, f)]
        given = {f: torch.tensor(f) for f in wanted if f not in left_out}
        read += given
        clip = {"dataset_name": "d", "video_id": 1, "frame_id": key, "given_before": left_out}
        clip |= {"image": given.pop(key, None), "reference_images": given}
        clip = images.complete(clip)
        assert int(clip["image"]) == key
        assert {f: int(image) for f, image in clip["reference_images"].items()} == {
            f: f for f in wanted if f != key
        }
        assert "given_before" not in clip
        assert len(images._images) <= (2 * half if method == "adaptive" else half + 1)
    assert sorted(read) == list(range(num_frames))


def test_a_video_does_not_get_images_of_another() -> None:
    images = ClipImages(ReferenceSampling("fixed", 2))
    rest = {"dataset_name": "d", "image": torch.tensor(0), "given_before": []}
    images.complete({**rest, "video_id": 1, "frame_id": 0, "reference_images": {1: "of video 1"}})
    with pytest.raises(KeyError):
        images.complete(
            {**rest, "video_id": 2, "frame_id": 1, "reference_images": {}, "given_before": [1]}
        )


def test_training_decodes_a_frame_of_several_clips_once(
    make_dataset: MakeDataset, make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset((6,), size=(24, 32))
    reads: list[str] = []
    whole = dataset_mapper_module.read_frame

    def noting(file_name: str, image_format: str) -> np.ndarray:
        reads.append(file_name)
        return whole(file_name, image_format)

    monkeypatch.setattr(dataset_mapper_module, "read_frame", noting)
    cfg = make_cfg(dataset, **{"INPUT.MIN_SIZE_TRAIN": (24, 48), "INPUT.RANDOM_FLIP": "horizontal"})
    for frames_held, expected in ((6, 6), (0, 6 * 10 * 3)):
        reads.clear()
        limit = frames_held * 24 * 32 * 3
        monkeypatch.setattr(dataset_mapper_module, "_MAX_RECENT_BYTES", limit)
        mapper = VIDDatasetMapper(cfg, is_train=True)
        for record in _records(dataset) * 10:
            clip = mapper(record)
            assert _green(clip["image"]) == record["frame_id"]
            assert {f: _green(i) for f, i in clip["reference_images"].items()} == {
                f: f for f in clip["reference_frame_ids"]
            }
            held = mapper._recent._frames.values()
            assert sum(image.nbytes for image in held) == mapper._recent._bytes <= limit
        if frames_held:
            assert len(reads) == expected
        else:
            assert 6 * 10 * 2 <= len(reads) <= expected, "one or two references each"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"TEST.REFERENCES.SAMPLING": "even"}, "TEST.REFERENCES.SAMPLING is 'even'"),
        ({"TEST.REFERENCES.NUM": 0}, "TEST.REFERENCES.NUM is 0; it must be at least 1"),
        (
            {"TEST.REFERENCES.SAMPLING": "fixed", "TEST.REFERENCES.NUM": 5},
            "TEST.REFERENCES.NUM is 5; .* must be even",
        ),
        ({"TEST.REFERENCES.STRIDE": 0}, "TEST.REFERENCES.STRIDE is 0"),
        ({"INPUT.FORMAT": "L"}, "INPUT.FORMAT is 'L'"),
    ],
)
def test_contradicting_config(
    make_dataset: MakeDataset, make_cfg: MakeCfg, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        VIDDatasetMapper(make_cfg(make_dataset((1,)), **values), is_train=False)


def test_too_few_training_references(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(make_dataset((1,)), **{"INPUT.REFERENCES.NUM": 0})
    with pytest.raises(ConfigError, match=r"INPUT.REFERENCES.NUM is 0"):
        VIDDatasetMapper(cfg, is_train=True)
    cfg = make_cfg(make_dataset((1,)), **{"INPUT.REFERENCES.RANGE": 0})
    with pytest.raises(ConfigError, match=r"INPUT.REFERENCES.RANGE is 0"):
        VIDDatasetMapper(cfg, is_train=True)
