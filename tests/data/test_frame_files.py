"""Where frames are: as pictures, in the video file that the JSON names, or in one called alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from encoded_videos import encode, moving_pictures, play
from hypothesis import given
from hypothesis import strategies as st
from made_datasets import MadeDataset, MakeDataset

from clab_d2.converters.dataset_checker import check_dataset
from clab_d2.data import build_vid_test_loader, get_video_table, register_coco_vid
from clab_d2.data.frame_files import FrameFiles, first_out_of_order
from clab_d2.data.frames import read_frame
from clab_d2.errors import DataError

SIZE = (48, 64)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("clips") / "clip.mp4", moving_pictures(9, *SIZE))


def on_clips(
    make_dataset: MakeDataset, clip: Path, lengths: tuple[int, ...] = (9, 6)
) -> MadeDataset:
    """Videos v1, v2, ... whose "file" is <root>/clips/a1.mp4, ...; the pictures are removed."""
    dataset = make_dataset(lengths, size=SIZE)
    (dataset.root / "clips").mkdir()
    for video in dataset.data["videos"]:
        video["file"] = f"clips/a{video['id']}.mp4"
        shutil.copy(clip, dataset.root / video["file"])
        shutil.rmtree(dataset.root / video["name"])
    dataset.save()
    return dataset


def file_names(dataset: MadeDataset) -> list[str]:
    """What is read for each frame, relative to the image root."""
    records = DatasetCatalog.get(dataset.name)
    table = get_video_table(dataset.name)
    names = [table.file_name(record["video_id"], record["frame_id"]) for record in records]
    assert names == [record["file_name"] for record in records]
    return [os.path.relpath(name, dataset.root) for name in names]


def test_frames_are_read_from_the_file_that_the_json_names(
    make_dataset: MakeDataset, make_cfg: Callable[..., CfgNode], clip: Path
) -> None:
    dataset = on_clips(make_dataset, clip)
    assert file_names(dataset) == [
        *(f"clips/a1.mp4#{n}" for n in range(9)), *(f"clips/a2.mp4#{n}" for n in range(6)),
    ]  # fmt: skip
    played = play(clip)
    loader = build_vid_test_loader(make_cfg(dataset), dataset.name)
    clips = [clip for batch in loader for clip in batch]
    assert len(clips) == 15
    for frame, image in [item for made in clips for item in made["images"].items()]:
        np.testing.assert_array_equal(image.numpy(), played[frame].transpose(2, 0, 1))
    report = check_dataset(dataset.json_file, dataset.root, frames=True, workers=1)
    assert report.ok and report.num_frames_read == 15


def test_pictures_that_are_there_come_first(make_dataset: MakeDataset, clip: Path) -> None:
    """Of some videos there may be pictures, of others the file."""
    dataset = make_dataset((3, 3), size=SIZE)
    for video in dataset.data["videos"]:
        video["file"] = "clip.mp4"
    dataset.save()
    shutil.copy(clip, dataset.root)
    (dataset.root / "v2" / "000002.png").unlink()  # an extraction that was broken off
    assert file_names(dataset) == [
        *(f"v1/{n:06d}.png" for n in range(3)), "clip.mp4#0", "clip.mp4#1", "clip.mp4#2",
    ]  # fmt: skip


def test_the_image_root_may_be_the_video_itself(
    make_dataset: MakeDataset, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset((4,), size=SIZE)
    for video in ({"id": 1, "name": "v1"}, {"id": 1, "name": "v1", "file": "other.mp4"}):
        dataset.data["videos"] = [video]
        dataset.save()
        name = on_root(dataset, clip)
        assert [r["file_name"] for r in DatasetCatalog.get(name)] == [
            f"{clip}#{n}" for n in range(4)
        ]
        assert get_video_table(name).file_name(1, 3) == f"{clip}#3"
    assert check_dataset(dataset.json_file, clip, frames=True).ok
    monkeypatch.chdir(clip.parent)  # a bare file name, too
    (first, *_) = DatasetCatalog.get(on_root(dataset, "clip.mp4"))
    assert first["file_name"] == "clip.mp4#0"
    assert read_frame(first["file_name"]).shape == (*SIZE, 3)


def on_root(dataset: MadeDataset, image_root: object) -> str:
    """Register the dataset, under its name, on another image root."""
    DatasetCatalog.remove(dataset.name)
    MetadataCatalog.remove(dataset.name)
    register_coco_vid(dataset.name, {}, str(dataset.json_file), str(image_root))
    return dataset.name


def test_an_image_root_that_cannot_be(make_dataset: MakeDataset, clip: Path) -> None:
    two, still = make_dataset((2, 2), size=SIZE), make_dataset((2,), stills=1, size=SIZE)
    for dataset in (two, still):
        for load in (
            lambda d=dataset: DatasetCatalog.get(on_root(d, clip)),
            lambda d=dataset: check_dataset(d.json_file, clip),
        ):
            with pytest.raises(DataError, match=r"clip.mp4: one video file as .* of 2 v"):
                load()
        with pytest.raises(DataError, match=r"json: neither a folder nor a video file \(.3gp, .*"):
            DatasetCatalog.get(on_root(dataset, dataset.json_file))


@pytest.mark.parametrize("name", ["garden", "cam1/garden", "garden.MP4", "a.b"])
def test_a_video_file_called_like_the_video(
    name: str, make_dataset: MakeDataset, clip: Path
) -> None:
    dataset = make_dataset((3, 2), size=SIZE)
    dataset.data["videos"][0]["name"] = name
    dataset.save()
    shutil.rmtree(dataset.root / "v1")
    file = dataset.root / (name if name.endswith(".MP4") else f"{name}.MP4")
    (file.parent / "garden.mp4.mkv").mkdir(parents=True)  # a folder is no video file
    (file.parent / "garden.txt").touch()
    shutil.copy(clip, file)
    relative = file.relative_to(dataset.root)
    assert file_names(dataset) == [
        *(f"{relative}#{n}" for n in range(3)), "v2/000000.png", "v2/000001.png",
    ]  # fmt: skip
    # The JSON's word goes before the likeness of names.
    shutil.copy(clip, dataset.root / "named.mov")
    dataset.data["videos"][0]["file"] = "named.mov"
    dataset.save()
    assert file_names(dataset)[:3] == [f"named.mov#{n}" for n in range(3)]


def test_several_files_called_like_the_video(make_dataset: MakeDataset, clip: Path) -> None:
    dataset = make_dataset((3,), size=SIZE)
    for suffix in (".mp4", ".mkv"):
        shutil.copy(clip, dataset.root / f"v1{suffix}")
    assert file_names(dataset)[0] == "v1/000000.png", "no question while the pictures are there"
    shutil.rmtree(dataset.root / "v1")
    message = r'video v1 may be v1.mkv or v1.mp4; name the right one as "file"'
    with pytest.raises(DataError, match=message) as caught:
        DatasetCatalog.get(dataset.name)
    assert str(caught.value).startswith(str(dataset.root))
    (problem, missing) = check_dataset(dataset.json_file, dataset.root).problems[:2]
    assert problem.kind == "videos whose file is not clear" and "v1.mkv or v1.mp4" in str(problem)
    assert (missing.kind, missing.count) == ("missing files", 3)


@pytest.mark.parametrize(
    ("numbers", "clear"),
    [
        (range(3), True),
        (range(1, 4), True),  # counted from 1
        (range(0, 12, 4), False),  # every 4th frame: not frames 0, 1, 2 of the video file
        (range(7, 10), False),  # a stretch from its middle
    ],
)
def test_a_likeness_of_names_is_not_enough_if_numbers_differ(
    numbers: range, clear: bool, tmp_path: Path
) -> None:
    (tmp_path / "v1.mp4").touch()
    pictures = [f"v1/take2_{number:04d}_left.jpg" for number in numbers]
    for root in (tmp_path, tmp_path / "v1.mp4"):
        files = FrameFiles(str(root), 1)
        if clear:
            assert files.names("v1", None, pictures, range(3)) == [f"v1.mp4#{n}" for n in range(3)]
            continue
        message = r"video v1 has no picture .*, and .* unclear which .*; call each frame v1.mp4#<"
        with pytest.raises(DataError, match=message):
            files.names("v1", None, pictures, range(3))
    # "file" in the JSON says that frame_id is the number.
    assert files.names("v1", "v1.mp4", pictures, range(3)) == [f"v1.mp4#{n}" for n in range(3)]
    assert files.names("v1", None, ["left.jpg"] * 3, range(3))[2] == "v1.mp4#2"


def test_neither_pictures_nor_file(
    make_dataset: MakeDataset, make_cfg: Callable[..., CfgNode], clip: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Both places are named, in one line: at the job's start if no video is there at all."""
    dataset = on_clips(make_dataset, clip)
    (dataset.root / "clips/a1.mp4").unlink()
    places = (
        f"neither the picture {dataset.root}/v1/000000.png nor the video file "
        f"{dataset.root}/clips/a1.mp4 is there"
    )
    build_vid_test_loader(make_cfg(dataset), dataset.name)
    assert f"{places} (1 of 2 videos are missing); fetch either" in caplog.text
    (missing, files) = check_dataset(dataset.json_file, dataset.root).problems[:2]
    assert str(missing) == f"error: videos without pictures or file: 1 ({places})"
    assert (files.kind, files.count) == ("missing files", 9)

    (dataset.root / "clips/a2.mp4").unlink()
    with pytest.raises(DataError) as caught:
        build_vid_test_loader(make_cfg(dataset), dataset.name)
    message = str(caught.value)
    assert message.startswith(f"{dataset.root}: dataset '{dataset.name}': {places}; fetch either")
    assert "\n" not in message
    # Put there meanwhile, they are found without starting Python anew.
    for number in (1, 2):
        shutil.copy(clip, dataset.root / f"clips/a{number}.mp4")
    build_vid_test_loader(make_cfg(dataset), dataset.name)


def test_a_file_of_no_known_kind(make_dataset: MakeDataset, clip: Path) -> None:
    dataset = on_clips(make_dataset, clip, lengths=(2,))
    dataset.data["videos"][0]["file"] = "clips/a1.dat"
    dataset.save()
    with pytest.raises(DataError, match=r"v1 has no picture .* \"file\" 'clips/a1.dat' is no"):
        DatasetCatalog.get(dataset.name)
    dataset.data["videos"][0]["file"] = 3
    dataset.save()
    with pytest.raises(DataError, match=r"videos\[0\] \(id 1\) has 3 as \"file\"; it must be a s"):
        DatasetCatalog.get(dataset.name)
    kinds = [p.kind for p in check_dataset(dataset.json_file, dataset.root).problems]
    assert 'videos whose "file" is no name' in kinds


def test_frames_beyond_the_files_end(
    make_dataset: MakeDataset, make_cfg: Callable[..., CfgNode], clip: Path
) -> None:
    dataset = on_clips(make_dataset, clip, lengths=(11,))
    (problem,) = [
        p
        for p in check_dataset(dataset.json_file, dataset.root, frames=True).problems
        if p.is_error
    ]
    assert (problem.kind, problem.count) == ("frames beyond their video's end", 2)
    with pytest.raises(DataError, match=r"a1.mp4: no frame 9; the video has frames 0 to 8 .*corr"):
        read_frame(DatasetCatalog.get(dataset.name)[9]["file_name"])
    clips = [c for batch in build_vid_test_loader(make_cfg(dataset), dataset.name) for c in batch]
    assert [f for c in clips for f, image in c["images"].items() if image is None] == [9, 10]


def test_numbers_in_a_video_that_the_json_gives_are_kept(clip: Path, tmp_path: Path) -> None:
    """Frames 0, 1, 2 of the dataset may be frames 0, 4, 8 of the video file."""
    names = ["there.mp4#0", "there.mp4#4", "there.mp4#8"]
    shutil.copy(clip, tmp_path / "there.mp4")
    here = FrameFiles(str(tmp_path), 1).names("v", "elsewhere.mp4", names, range(3))
    assert here == names
    (tmp_path / "there.mp4").rename(tmp_path / "moved.mp4")
    moved = FrameFiles(str(tmp_path), 1).names("v", "moved.mp4", names, range(3))
    assert moved == ["moved.mp4#0", "moved.mp4#4", "moved.mp4#8"]
    alone = FrameFiles(str(tmp_path / "moved.mp4"), 1)
    assert alone.names("v", None, names, range(3)) == moved and alone.root == str(tmp_path)


@given(st.integers(1, 400), st.booleans())
def test_files_looked_at_do_not_grow_with_the_frames(num_frames: int, named: bool) -> None:
    """A video costs two or three looks, and without "file" in the JSON none: one per folder."""
    looks: list[Any] = []

    def look(path: str) -> bool:
        looks.append(path)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "exists", look)
        patch.setattr(os.path, "isfile", look)
        patch.setattr(os, "listdir", lambda path: look(path) or ["else.mp4"])
        files = FrameFiles("root", 50)
        for video in range(50):
            names = [f"train/v{video}/{n:06d}.jpg" for n in range(num_frames)]
            file = f"v{video}.mp4" if named else None
            assert files.names(f"train/v{video}", file, names, range(num_frames)) == names
    assert len(looks) == (1 + 3 * 50 if named else 1 + 1)
    assert len(files.not_found) == (50 if named else 0)


def test_stills_are_never_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    files = FrameFiles("root", 2)
    monkeypatch.setattr(os.path, "exists", lambda path: pytest.fail("looked at"))
    assert files.names("", None, ["a.jpg"], [0]) == ["a.jpg"]


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (["a/000000.jpg", "a/000001.jpg", "a/000002.jpg"], None),
        (["a/8.jpg", "a/9.jpg", "a/10.jpg"], None),
        (["a/10.jpg", "a/11.jpg", "a/8.jpg", "a/9.jpg"], 2),
        (["a/100.jpg", "a/110.jpg", "a/80.jpg", "a/90.jpg"], 2),
        (["a/0002.jpg", "a/0001.jpg", "a/0000.jpg"], 1),
        (["a/5.jpg", "a/7.jpg", "a/8.jpg", "a/6.jpg"], 3),
        (["a.mp4#3", "a.mp4#4", "a.mp4#2"], 2),
        (["cam1/f10_left.jpg", "cam1/f9_left.jpg", "cam1/f11_left.jpg"], 1),
        # Nothing to go by: few names, numbers that repeat, are no counter, or are in few names.
        (["a/2.jpg", "a/1.jpg"], None),
        (["a/1_2.jpg", "a/2_1.jpg", "a/1_2.jpg"], None),
        (["a/90210.jpg", "a/11.jpg", "a/700.jpg"], None),
        (["a/x.jpg", "a/3.jpg", "a/2.jpg", "a/1.jpg"], None),
        (["3/x.jpg", "2/x.jpg", "1/x.jpg"], None),
        (["a/x.mp4", "a/y.mp4", "a/b.mp4"], None),
        (["one.jpg"], None),
    ],
)
def test_order_of_the_numbers_in_names(names: list[str], place: int | None) -> None:
    assert first_out_of_order(names) == place
