"""Clips: the right frames, treated alike, and what becomes of a frame that can't be read."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from made_datasets import MadeDataset, MakeDataset

from clab_d2.data import VIDDatasetMapper, get_video_table
from clab_d2.data import dataset_mapper as dataset_mapper_module
from clab_d2.data.reference_sampling import build_reference_sampling
from clab_d2.errors import ConfigError, DataError

MakeCfg = Callable[..., CfgNode]


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
            frames, images = clip["reference_frame_ids"], clip["images"]
            assert len(frames) == 2
            assert set(images) == {*frames, key}
            assert all(_green(image) == frame for frame, image in images.items())
            if video_id == 1:
                assert key not in frames
                assert len(set(frames)) == (2 if 0 < key < 11 else 1)
            else:
                assert frames == [key, key] == [0, 0]
        expected = {k: record[k] for k in ("height", "width", "image_id", "video_id", "frame_id")}
        expected |= {k: record[k] for k in ("file_name", "dataset_name")}
        assert expected.items() <= clip.items()
        assert list(clip["instances"]) == [key], "references need no truth"
        instances = clip["instances"][key]
        assert instances.gt_boxes.tensor.tolist() == [[2, 4, 12, 12]]
        assert instances.gt_classes.tolist() == [record["annotations"][0]["category_id"]]
        assert instances.gt_tracks.tolist() == [record["annotations"][0]["instance_id"]]
        assert instances.image_size == (24, 32)
        assert "annotations" not in clip and "annotations" in record


def test_references_come_with_their_truth_where_it_is_asked_for(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    dataset = make_dataset((12,), stills=1)
    for frame, image in enumerate(dataset.data["images"][:12]):
        dataset.data["annotations"][frame] |= {"bbox": [frame, 4, 10, 8], "instance_id": 70 + frame}
        image["annotated"] = frame != 4
    dataset.save()
    cfg = make_cfg(dataset, **{"INPUT.RANDOM_FLIP": "horizontal", "INPUT.MIN_SIZE_TRAIN": (48,)})
    mapper = VIDDatasetMapper(cfg, is_train=True, needs_reference_truth=True)
    seen = set()
    for record in [record for record in _records(dataset) if record["is_key_frame"]] * 10:
        clip = mapper(record)
        known = set(clip["images"]) - ({4} if record["num_frames"] == 12 else set())
        assert set(clip["instances"]) == known
        if record["num_frames"] == 1:
            continue
        for frame, truth in clip["instances"].items():
            x1, _, x2, _ = truth.gt_boxes.tensor[0].tolist()
            assert (x1, x2) in {(2 * frame, 2 * frame + 20), (44 - 2 * frame, 64 - 2 * frame)}
            assert truth.gt_tracks.tolist() == [70 + frame]
            assert truth.image_size == tuple(clip["images"][frame].shape[1:])
        seen |= known
    assert seen == set(range(12)) - {4}


def test_truth_of_a_reference_that_has_another_size_is_not_known(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    """The reference itself is welcome at any size."""
    dataset = make_dataset((3,), size=(24, 32))
    cv2.imwrite(str(dataset.frame_file(1, 2)), np.zeros((12, 16, 3), np.uint8))
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True, needs_reference_truth=True)
    record = next(record for record in _records(dataset) if record["frame_id"] == 1)
    clip = mapper(record)
    assert set(clip["images"]) == {0, 1, 2}
    assert set(clip["instances"]) == {0, 1}


def test_single_frame_models_get_no_references(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    dataset = make_dataset((4,))
    record = _records(dataset)[1]
    for is_train in (True, False):
        mapper = VIDDatasetMapper(make_cfg(dataset), is_train=is_train, needs_references=False)
        clip = mapper(record)
        assert (clip["reference_frame_ids"], list(clip["images"])) == ([], [1])
        assert ("instances" in clip) == is_train


@pytest.mark.parametrize("num_frames", [1, 2, 5, 20])
@pytest.mark.parametrize(
    ("sampling", "num", "stride"),
    [("adaptive", 14, 1), ("fixed", 6, 1), ("fixed", 4, 3), ("causal", 4, 1), ("causal", 3, 2)],
)
def test_clips_at_test_follow_the_schedule(
    make_dataset: MakeDataset,
    make_cfg: MakeCfg,
    sampling: str,
    num: int,
    stride: int,
    num_frames: int,
) -> None:
    """A memory of what each clip says to keep always has what the next one needs."""
    dataset = make_dataset((num_frames, 2))
    cfg = make_cfg(
        dataset,
        **{
            "TEST.REFERENCES.SAMPLING": sampling,
            "TEST.REFERENCES.NUM": num,
            "TEST.REFERENCES.STRIDE": stride,
        },
    )
    mapper, method = VIDDatasetMapper(cfg, is_train=False), build_reference_sampling(cfg, False)
    memory: set[int] = set()
    came: list[tuple[int, int]] = []
    for record in _records(dataset):
        key, length = record["frame_id"], record["num_frames"]
        clip = mapper(record)
        assert clip["reference_frame_ids"] == method.frames(length, key)
        assert all(_green(image) == frame for frame, image in clip["images"].items())
        assert "instances" not in clip
        came += [(record["video_id"], frame) for frame in clip["images"]]
        memory |= set(clip["images"])
        assert {*clip["reference_frame_ids"], key} <= memory
        memory &= set(clip["kept_frame_ids"])
    assert sorted(came) == [(1, frame) for frame in range(num_frames)] + [(2, 0), (2, 1)]


@pytest.mark.parametrize("sampling", ["adaptive", "fixed", "causal"])
def test_references_at_test_are_of_the_shot(
    make_dataset: MakeDataset, make_cfg: MakeCfg, sampling: str
) -> None:
    """As if each shot were a video."""
    film, parts = make_dataset((9, 2)), make_dataset((4, 5, 2))
    film.data["videos"][0]["shots"] = [0, 4]
    film.save()
    references = []
    for dataset, first_frames in ((film, (0, 0)), (parts, (0, 4, 0))):
        options = {"TEST.REFERENCES.SAMPLING": sampling, "TEST.REFERENCES.NUM": 4}
        mapper = VIDDatasetMapper(make_cfg(dataset, **options), is_train=False)
        references.append([])
        for record in _records(dataset):
            first = first_frames[record["video_id"] - 1]
            clip = mapper(record)
            names = ("reference_frame_ids", "images", "kept_frame_ids")
            references[-1].append([[first + frame for frame in clip[name]] for name in names])
    assert references[0] == references[1]


def test_references_in_training_are_of_the_shot(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    dataset = make_dataset((9,))
    dataset.data["videos"][0]["shots"] = [0, 4]
    dataset.save()
    records = _records(dataset)
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True)
    # So many that chance leaves none out
    drawn = [f for _ in range(200) for f in mapper(records[4])["reference_frame_ids"]]
    assert set(drawn) == {5, 6, 7, 8}


def test_chosen_key_frames(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    """With few key frames, only what they need is read."""
    dataset = make_dataset((40,))
    cfg = make_cfg(dataset, **{"TEST.REFERENCES.SAMPLING": "fixed", "TEST.REFERENCES.NUM": 4})
    mapper = VIDDatasetMapper(cfg, is_train=False, key_frames={(dataset.name, 1): [10, 30]})
    clips = [mapper(_records(dataset)[key]) for key in (10, 30)]
    assert [list(clip["images"]) for clip in clips] == [[8, 9, 10, 11, 12], [28, 29, 30, 31, 32]]
    assert [clip["kept_frame_ids"] for clip in clips] == [[], []]


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
        images = [clip["images"][frame] for frame in (1, 0, 2)]
        flipped = {bool(image[0, 0, 0] > image[0, 0, -1]) for image in images}
        short = {min(image.shape[1:]) for image in images}
        assert len(flipped) == len(short) == 1
        assert torch.equal(images[0], images[1])
        assert images[2].shape[2] > images[0].shape[2]
        scale = short.copy().pop() / 40
        x1, y1, x2, y2 = (clip["instances"][1].gt_boxes.tensor[0] / scale).tolist()
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
        return [
            (c["reference_frame_ids"], c["instances"][c["frame_id"]].gt_boxes.tensor.tolist())
            for c in clips
        ]

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
    instances = clip["instances"][0]
    assert instances.gt_boxes.tensor.tolist() == [[2, 4, 12, 12], [28, 20, 32, 24]]
    assert len(instances.gt_tracks) == 2


def test_bgr(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((2, 2))
    record = _records(dataset)[2]
    rgb = VIDDatasetMapper(make_cfg(dataset), is_train=False)(record)["images"][0]
    cfg = make_cfg(dataset, **{"INPUT.FORMAT": "BGR"})
    bgr = VIDDatasetMapper(cfg, is_train=False)(record)["images"][0]
    assert int(rgb[0, 0, 0]) == 2, "the video's number is painted in red"
    assert torch.equal(bgr, rgb.flip(0))


@pytest.mark.parametrize("is_train", [True, False])
def test_strict_stops_at_a_bad_frame(
    make_dataset: MakeDataset, make_cfg: MakeCfg, is_train: bool
) -> None:
    dataset = make_dataset((3,))
    bad = dataset.frame_file(1, 2)
    bad.write_bytes(bad.read_bytes()[:40])
    options = {"DATALOADER.STRICT": True, "TEST.REFERENCES.SAMPLING": "fixed"}
    mapper = VIDDatasetMapper(make_cfg(dataset, **options), is_train=is_train)
    # In training as a reference and as the key frame; at test it comes once.
    for key in (0, 2) if is_train else (0,):
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
    sampling = {"TEST.REFERENCES.SAMPLING": "causal"}
    clip = VIDDatasetMapper(make_cfg(dataset, **sampling), is_train=False)(record)
    assert clip["images"] == {3: None} and clip["frame_id"] == 3
    assert len(clip["reference_frame_ids"]) == 15 and clip["reference_frame_ids"][-1] == 3
    assert caplog.text.count(f"Frame left out: {dataset.frame_file(1, 3)}: no such frame") == 1
    assert get_video_table(dataset.name).bad_frames() == [str(dataset.frame_file(1, 3))]


def test_bad_references_in_training(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((3,))
    record = _records(dataset)[1]
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True)
    dataset.frame_file(1, 0).write_bytes(b"")
    clip = mapper(record)
    assert clip["reference_frame_ids"] == [2, 2], "the other one stands in"
    assert list(clip["images"]) == [1, 2] and _green(clip["images"][2]) == 2
    dataset.frame_file(1, 2).write_bytes(b"")
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True)  # one that holds no frame yet
    clip = mapper(record)
    assert clip["reference_frame_ids"] == [1, 1], "the key frame stands in"
    assert list(clip["images"]) == [1]


def test_bad_reference_at_test(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((5,))
    dataset.frame_file(1, 2).write_bytes(b"")
    clip = VIDDatasetMapper(make_cfg(dataset), is_train=False)(_records(dataset)[0])
    images = clip["images"]
    assert sorted(images) == [0, 1, 2, 3, 4]
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
    references = [set(mapper(records[0])["reference_frame_ids"]) for _ in range(30)]
    assert {1} in references, "a reference has no boxes, and serves at any size"


def test_a_training_that_can_read_nothing_ends(
    make_dataset: MakeDataset, make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset((8,))
    monkeypatch.setattr(dataset_mapper_module, "_MAX_BAD_KEYS_IN_A_ROW", 3)
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=True)
    records = _records(dataset)
    for frame in (1, 2, 4, 5, 6):
        dataset.frame_file(1, frame).unlink()
    for record in records[:6]:
        mapper(record)  # never three in a row
    with pytest.raises(DataError, match=r"000006.png and the 2 key frames before .* image folder"):
        mapper(records[6])


def test_a_missing_video_does_not_end_an_evaluation(
    make_dataset: MakeDataset, make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At test the frames of a video come one after the other, and so do those of a missing one."""
    dataset = make_dataset((3, 8, 2))
    monkeypatch.setattr(dataset_mapper_module, "_MAX_BAD_KEYS_IN_A_ROW", 3)
    for frame in range(8):
        dataset.frame_file(2, frame).unlink()
    mapper = VIDDatasetMapper(make_cfg(dataset), is_train=False)
    clips = [mapper(record) for record in _records(dataset)]
    read = {(c["video_id"], f) for c in clips for f, i in c["images"].items() if i is not None}
    assert read == {(1, 0), (1, 1), (1, 2), (3, 0), (3, 1)}
    assert len(get_video_table(dataset.name).bad_frames()) == 8


def test_references_at_test_are_key_frames_to_come(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    """Their size must be that of the annotations."""
    dataset = make_dataset((5,), size=(24, 32))
    dataset.data["images"][2]["width"] = 33
    dataset.save()
    clip = VIDDatasetMapper(make_cfg(dataset), is_train=False)(_records(dataset)[0])
    assert [frame for frame, image in clip["images"].items() if image is None] == [2]
    assert get_video_table(dataset.name).bad_frames() == [str(dataset.frame_file(1, 2))]


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
            assert {f: _green(i) for f, i in clip["images"].items()} == {
                f: f for f in (record["frame_id"], *clip["reference_frame_ids"])
            }
            held = mapper._recent._frames.values()
            assert sum(image.nbytes for image in held) == mapper._recent._bytes <= limit
        if frames_held:
            assert len(reads) == expected
        else:
            assert 6 * 10 * 2 <= len(reads) <= expected, "one or two references each"


def test_contradicting_config(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(make_dataset((1,)), **{"INPUT.FORMAT": "L"})
    with pytest.raises(ConfigError, match=r"INPUT.FORMAT is 'L'"):
        VIDDatasetMapper(cfg, is_train=False)
