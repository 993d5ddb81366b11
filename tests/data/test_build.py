"""Loaders: key frames mixed, whole videos in order, and trouble said before the job begins."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from made_datasets import MakeDataset

from clab_d2.data import (
    build_vid_test_loader,
    build_vid_train_loader,
    collect_bad_frames,
    get_video_table,
)
from clab_d2.data import dataset_mapper as dataset_mapper_module
from clab_d2.data.build import get_key_frames
from clab_d2.data.coco_json import ADD_VIDEOS
from clab_d2.errors import ConfigError, DataError

MakeCfg = Callable[..., CfgNode]


def _clips(loader: Any, number: int) -> list[dict[str, Any]]:
    return list(itertools.islice((clip for batch in loader for clip in batch), number))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_mixes_videos_and_stills(
    make_dataset: MakeDataset, make_cfg: MakeCfg, num_workers: int
) -> None:
    """Each key frame once a pass; frames without objects serve as references only."""
    videos, stills = make_dataset((6, 4)), make_dataset((), stills=4)
    for image in videos.data["images"]:
        image["is_vid_train_frame"] = image["frame_id"] in (1, 2)
    videos.data["annotations"] = [a for a in videos.data["annotations"] if a["image_id"] != 2]
    videos.save()
    cfg = make_cfg(videos, **{"DATALOADER.NUM_WORKERS": num_workers})
    cfg.DATASETS.TRAIN = (videos.name, stills.name)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    loader = build_vid_train_loader(cfg)
    # 3 key frames of videos (1 of the 4 has no object) and 4 stills: 7 a pass.
    clips = _clips(loader, 14)
    keys = Counter((c["dataset_name"], c["image_id"]) for c in clips)
    assert set(keys) == {(videos.name, i) for i in (3, 8, 9)} | {
        (stills.name, i) for i in (1, 2, 3, 4)
    }
    if not num_workers:
        assert set(keys.values()) == {2}
    of_videos = [clip for clip in clips if clip["dataset_name"] == videos.name]
    references = {f for clip in of_videos for f in clip["reference_frame_ids"]}
    assert references - {1, 2}, "frames that are no key frames are references"
    assert all(len(batch) == 2 for batch in itertools.islice(loader, 3))


def test_training_over_frames_warns_of_stills_alone(
    make_dataset: MakeDataset, make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture
) -> None:
    videos, stills = make_dataset((6,)), make_dataset((), stills=4)
    cfg = make_cfg(videos)
    build_vid_train_loader(cfg)
    cfg.DATASETS.TRAIN = (videos.name, stills.name)
    build_vid_train_loader(cfg)
    cfg.DATASETS.TRAIN = (stills.name,)
    build_vid_train_loader(cfg, needs_references=False)
    assert ADD_VIDEOS not in caplog.text
    for _ in range(2):
        build_vid_train_loader(cfg)
    assert caplog.text.count(ADD_VIDEOS) == 1


def test_workers_draw_differently(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((60,))
    cfg = make_cfg(dataset, **{"DATALOADER.NUM_WORKERS": 2, "SOLVER.IMS_PER_BATCH": 1})
    for image in dataset.data["images"]:
        image["is_vid_train_frame"] = image["frame_id"] == 30
    dataset.save()
    loader = build_vid_train_loader(cfg)
    drawn = [tuple(clip["reference_frame_ids"]) for clip in _clips(loader, 40)]
    by_worker = drawn[::2], drawn[1::2]
    assert by_worker[0] != by_worker[1]
    assert len(set(drawn)) > 20


def test_frames_without_objects_may_be_key_frames(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    dataset = make_dataset((4,))
    dataset.data["annotations"] = dataset.data["annotations"][:1]
    dataset.data["images"][3]["annotated"] = False
    dataset.save()
    assert len(get_key_frames([dataset.name])) == 1
    assert [r["frame_id"] for r in get_key_frames([dataset.name], filter_empty=False)] == [0, 1, 2]
    cfg = make_cfg(dataset, **{"DATALOADER.FILTER_EMPTY_ANNOTATIONS": False})
    clips = _clips(build_vid_train_loader(cfg), 12)
    assert {c["frame_id"]: len(c["instances"][c["frame_id"]]) for c in clips} == {0: 1, 1: 0, 2: 0}


def test_training_survives_bad_frames_and_counts_them(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    """The workers' findings reach the main process."""
    dataset = make_dataset((8,))
    bad = [dataset.frame_file(1, 2), dataset.frame_file(1, 5)]
    bad[0].write_bytes(bad[0].read_bytes()[:50])
    bad[1].unlink()
    loader = build_vid_train_loader(make_cfg(dataset, **{"DATALOADER.NUM_WORKERS": 2}))
    clips = _clips(loader, 60)
    assert {c["frame_id"] for c in clips} == {0, 1, 3, 4, 6, 7}
    assert not {2, 5} & {f for c in clips for f in c["reference_frame_ids"]}
    assert collect_bad_frames([dataset.name]) == [str(file) for file in bad]


def test_strict_training_stops(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((8,))
    dataset.frame_file(1, 2).write_bytes(b"")
    cfg = make_cfg(dataset, **{"DATALOADER.NUM_WORKERS": 1, "DATALOADER.STRICT": True})
    with pytest.raises(DataError, match=r"000002.png: the file is empty"):
        _clips(build_vid_train_loader(cfg), 60)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_test_loader_gives_whole_videos_in_order(
    make_dataset: MakeDataset, make_cfg: MakeCfg, batch_size: int, num_workers: int
) -> None:
    dataset = make_dataset((6, 1, 9), stills=1)
    cfg = make_cfg(
        dataset,
        **{"TEST.KEY_FRAMES_PER_BATCH": batch_size, "DATALOADER.NUM_WORKERS": num_workers},
    )
    batches = list(build_vid_test_loader(cfg, dataset.name))
    order = [[(clip["video_id"], clip["frame_id"]) for clip in batch] for batch in batches]
    frames = [(1, f) for f in range(6)] + [(2, 0)] + [(3, f) for f in range(9)] + [(4, 0)]
    assert [place for batch in order for place in batch] == frames
    assert all(len({video for video, _ in batch}) == 1 for batch in order)
    lengths = [len(batch) for batch in order]
    assert lengths == ([1] * 17 if batch_size == 1 else [4, 2, 1, 4, 4, 1, 1])
    assert all("instances" not in clip for batch in batches for clip in batch)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("sampling", "num", "stride"),
    [("adaptive", 14, 1), ("fixed", 6, 1), ("fixed", 4, 3), ("causal", 4, 1), ("causal", 4, 2)],
)
def test_each_frame_is_decoded_once_at_test(
    make_dataset: MakeDataset,
    make_cfg: MakeCfg,
    monkeypatch: pytest.MonkeyPatch,
    sampling: str,
    num: int,
    stride: int,
    batch_size: int,
    num_workers: int,
) -> None:
    """By all workers together, and what a clip does not hold the model has been told to keep."""
    if num_workers and multiprocessing.get_start_method() != "fork":
        pytest.skip("what the workers read is counted by a function that they inherit")
    dataset = make_dataset((20, 1, 7))
    bad = dataset.frame_file(1, 7)
    bad.unlink()
    options = {
        "TEST.REFERENCES.SAMPLING": sampling,
        "TEST.REFERENCES.NUM": num,
        "TEST.REFERENCES.STRIDE": stride,
        "TEST.KEY_FRAMES_PER_BATCH": batch_size,
        "DATALOADER.NUM_WORKERS": num_workers,
    }
    cfg = make_cfg(dataset, **options)
    names = [record["file_name"] for record in DatasetCatalog.get(dataset.name)]
    # In memory that forked workers share.
    counts = torch.zeros(len(names), dtype=torch.int64).share_memory_()
    whole = dataset_mapper_module.read_frame

    def counting(file_name: str, image_format: str) -> Any:
        counts[names.index(file_name)] += 1
        return whole(file_name, image_format)

    monkeypatch.setattr(dataset_mapper_module, "read_frame", counting)
    clips = [clip for batch in build_vid_test_loader(cfg, dataset.name) for clip in batch]
    assert counts.tolist() == [1] * len(names)

    records = DatasetCatalog.get(dataset.name)
    assert [clip["image_id"] for clip in clips] == [record["image_id"] for record in records]
    held: dict[int, Any] = {}
    for clip in clips:
        if clip["frame_id"] == 0:
            held = {}
        held |= clip["images"]
        assert {clip["frame_id"], *clip["reference_frame_ids"]} <= set(held)
        held = {frame: held[frame] for frame in clip["kept_frame_ids"]}
    assert collect_bad_frames([dataset.name]) == [str(bad)]


def test_frames_of_unknown_truth_are_no_key_frames_unless_asked_for(
    make_dataset: MakeDataset, make_cfg: MakeCfg
) -> None:
    dataset = make_dataset((9, 3))
    for image in dataset.data["images"]:
        image["annotated"] = image["video_id"] == 1 and image["frame_id"] in (4, 8)
    dataset.save()
    cfg = make_cfg(dataset, **{"TEST.REFERENCES.SAMPLING": "fixed", "TEST.REFERENCES.NUM": 2})
    clips = _clips(build_vid_test_loader(cfg, dataset.name), 99)
    assert [(clip["frame_id"], list(clip["images"])) for clip in clips] == [
        (4, [3, 4, 5]), (8, [7, 8]),
    ]  # fmt: skip
    cfg.TEST.ALL_FRAMES = True
    assert len(_clips(build_vid_test_loader(cfg, dataset.name), 99)) == 12


def test_ranks_share_the_videos(
    make_dataset: MakeDataset, make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset((6, 1, 9))
    cfg = make_cfg(dataset)
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    seen = []
    for rank in range(4):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        loader = build_vid_test_loader(cfg, dataset.name)
        clips = _clips(loader, 99)
        assert len(clips) == len(loader)
        seen.append([(clip["video_id"], clip["frame_id"]) for clip in clips])
    assert [len(part) for part in seen] == [9, 6, 1, 0]
    assert len(set().union(*seen)) == 16


def test_test_survives_bad_frames(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((5,))
    dataset.frame_file(1, 2).unlink()
    cfg = make_cfg(dataset, **{"DATALOADER.NUM_WORKERS": 2})
    clips = _clips(build_vid_test_loader(cfg, dataset.name), 99)
    assert [frame for frame, image in clips[0]["images"].items() if image is None] == [2]
    assert all(not clip["images"] for clip in clips[1:]), "all came with the first"
    assert collect_bad_frames([dataset.name]) == [str(dataset.frame_file(1, 2))]


def test_wrong_image_folder_is_said_at_once(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((3, 3))
    for folder in ("v1", "v2"):
        shutil.rmtree(dataset.root / folder)
    for build in (
        lambda: build_vid_train_loader(make_cfg(dataset)),
        lambda: build_vid_test_loader(make_cfg(dataset), dataset.name),
    ):
        with pytest.raises(DataError, match=r"none of 2 frame\(s\) .*; correct the image"):
            build()


def test_nothing_to_train_on(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((3,))
    cfg = make_cfg(dataset)
    for annotation in dataset.data["annotations"]:
        annotation["iscrowd"] = True
    dataset.save()
    with pytest.raises(DataError, match=r"no key frame of .* has an object; .*FILTER_EMPTY"):
        build_vid_train_loader(cfg)
    for image in dataset.data["images"]:
        image["is_vid_train_frame"] = False
    dataset.save()
    with pytest.raises(DataError, match=r"annotations.json: .* no key frame to train on"):
        build_vid_train_loader(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ConfigError, match=r"DATASETS.TRAIN is empty"):
        build_vid_train_loader(cfg)


def test_mistakes_in_the_config(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((3,))
    with pytest.raises(ConfigError, match=r"TEST.KEY_FRAMES_PER_BATCH is 0"):
        build_vid_test_loader(make_cfg(dataset, **{"TEST.KEY_FRAMES_PER_BATCH": 0}), dataset.name)
    with pytest.raises(ConfigError, match="dataset 'yours' is not registered"):
        build_vid_test_loader(make_cfg(dataset), "yours")
    with pytest.raises(ConfigError, match=r"'coco_2017_val' is no video dataset; .* DATASETS.VID"):
        build_vid_test_loader(make_cfg(dataset), "coco_2017_val")


def test_a_million_frames_cost_little(tmp_path) -> None:
    """What every worker holds of a dataset: flat arrays, no object a frame."""
    from clab_d2.data.video_table import VideoRecord, VideoTable

    names = [f"train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00010001/{f:06d}.JPEG"
             for f in range(300)]
    table = VideoTable(
        "datasets/ILSVRC/Data/VID",
        [VideoRecord(v, "", names, [(720, 1280)] * 300) for v in range(50)],
    )
    arrays = [a for a in vars(table).values() if hasattr(a, "nbytes")]
    assert sum(a.nbytes for a in arrays) < 100 * len(table)
    others = [a for a in vars(table).values() if isinstance(a, list | dict)]
    assert sum(len(a) for a in others) <= 4 * 50
    assert table.file_name(49, 299) == f"datasets/ILSVRC/Data/VID/{names[-1]}"


def test_images_are_whole_tensors(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    """Sent by workers through shared memory: a view would drag its base along."""
    dataset = make_dataset((3,))
    cfg = make_cfg(dataset, **{"INPUT.MIN_SIZE_TRAIN": (48,), "INPUT.RANDOM_FLIP": "horizontal"})
    for clip in _clips(build_vid_train_loader(cfg), 6):
        for image in clip["images"].values():
            assert image.is_contiguous() and image.shape == (3, 48, 64)
            assert image.untyped_storage().nbytes() == image.numel()
    assert isinstance(image, torch.Tensor)
    assert get_video_table(dataset.name).num_frames(1) == 3
