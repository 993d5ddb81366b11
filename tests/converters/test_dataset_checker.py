"""Every fault that the check knows, made on purpose; the tool around it in tests/tools."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from encoded_videos import encode, moving_pictures
from made_datasets import MadeDataset, MakeDataset

from clab_d2.converters.dataset_checker import check_dataset
from clab_d2.data.coco_json import NO_VIDEOS
from clab_d2.errors import DataError

Break = Callable[[MadeDataset], Any]


def check(dataset: MadeDataset, **options: Any) -> dict[str, int]:
    """Count by kind of fault."""
    dataset.save()
    report = check_dataset(dataset.json_file, dataset.root, **options)
    assert report.ok == (not any(p.is_error for p in report.problems))
    assert len(report.lines()) == 1 + max(len(report.problems), 1)
    return {problem.kind: problem.count for problem in report.problems}


def image(dataset: MadeDataset, number: int) -> dict[str, Any]:
    return dataset.data["images"][number]


def box(dataset: MadeDataset, number: int) -> dict[str, Any]:
    return dataset.data["annotations"][number]


def test_a_good_dataset_has_no_problems(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(lengths=(5, 3), stills=2)
    # its cats and dogs take turns in one track, which is odd, but an error to nobody
    for annotation in dataset.data["annotations"]:
        annotation["category_id"] = 3
    seen: list[int] = []

    def progress(frames: Any, total: int) -> Any:
        seen.append(total)
        return frames

    assert check(dataset, frames=True, workers=2, progress=progress) == {}
    assert seen == [10]
    report = check_dataset(dataset.json_file, dataset.root)
    assert report.lines() == ["2 videos, 10 images, 10 annotations", "no problems found"]


def test_stills_alone_are_told_of(make_dataset: MakeDataset) -> None:
    found = check(make_dataset(lengths=(), stills=3))
    assert found.pop(NO_VIDEOS) == 1 and not found
    assert NO_VIDEOS not in check(make_dataset(lengths=(2,), stills=3))


# what is broken -> (how, what is reported, how often)
FAULTS: dict[str, tuple[Break, str, int]] = {
    "missing file": (lambda d: d.frame_file(1, 2).unlink(), "missing files", 1),
    "empty file": (lambda d: d.frame_file(1, 2).write_bytes(b""), "empty files", 1),
    "shots": (
        lambda d: d.data["videos"][0].update(shots=[0, 99]),
        "videos whose shots don't rise from 0 within the video",
        1,
    ),
    "outside": (lambda d: box(d, 0).update(bbox=[30, 4, 10, 8]), "boxes outside the image", 1),
    "far outside": (lambda d: box(d, 0).update(bbox=[-9, -9, 2, 2]), "boxes outside the image", 1),
    "zero area": (lambda d: box(d, 0).update(bbox=[3, 4, 0, 8]), "boxes of zero area", 1),
    "negative": (lambda d: box(d, 0).update(bbox=[3, 4, -5, 8]), "boxes of negative size", 1),
    "not a number": (
        lambda d: box(d, 0).update(bbox=[3, float("nan"), 5, 8]),
        "boxes that are not four numbers",
        1,
    ),
    "three numbers": (
        lambda d: box(d, 0).update(bbox=[3, 4, 5]),
        "boxes that are not four numbers",
        1,
    ),
    "no box": (lambda d: box(d, 0).pop("bbox"), "boxes that are not four numbers", 1),
    "frame twice": (lambda d: image(d, 1).update(frame_id=0), "duplicate frame numbers", 1),
    "frame gap": (lambda d: d.data["images"].pop(2), "missing frame numbers", 1),
    "first frame is 1": (lambda d: d.data["images"].pop(0), "missing frame numbers", 1),
    "no frame number": (lambda d: image(d, 4).pop("frame_id"), "frames without a number from 0", 1),
    "unknown class": (
        lambda d: [box(d, n).update(category_id=99) for n in (0, 1)],
        "annotations of an unknown class",
        2,
    ),
    "unknown image": (
        lambda d: box(d, 0).update(image_id=99),
        "annotations of an unknown image",
        1,
    ),
    "unknown video": (
        lambda d: image(d, 7).update(video_id=99),
        'images of a video that "videos" does not list',
        1,
    ),
    "empty video": (
        lambda d: d.data["videos"].append({"id": 9, "name": "v9"}),
        "videos without a frame",
        1,
    ),
    "image id twice": (lambda d: image(d, 1).update(id=1), "images that share an id", 1),
    "annotation id twice": (lambda d: box(d, 1).update(id=1), "annotations that share an id", 1),
    "video id twice": (
        lambda d: d.data["videos"].append({"id": 1, "name": "again"}),
        "videos that share an id",
        1,
    ),
    "nan area": (lambda d: box(d, 0).update(area=float("nan")), '"area" that is no number', 1),
    "iscrowd": (
        lambda d: box(d, 0).update(iscrowd="x"),
        '"iscrowd" that is neither 0 nor 1',
        1,
    ),
    "long instance id": (
        lambda d: box(d, 0).update(instance_id=10**30),
        "instance ids that are no integer of 64 bits",
        1,
    ),
    "long image id": (lambda d: image(d, 0).update(id=10**30), "images that lack a key", 1),
    "long box": (
        lambda d: box(d, 0).update(bbox=[3, 4, 10**400, 8]),
        "boxes that are not four numbers",
        1,
    ),
    "unhashable video": (
        lambda d: image(d, 7).update(video_id=[1]),
        'images of a video that "videos" does not list',
        1,
    ),
    "size of no number": (lambda d: image(d, 0).update(width=[1]), "images that lack a key", 1),
    "huge size": (lambda d: image(d, 0).update(width=2**31), "images without a size", 1),
    "half a character": (
        lambda d: image(d, 0).update(file_name="v1/\ud800.png"),
        "names that no file can have",
        1,
    ),
    "file of no name": (
        lambda d: d.data["videos"][0].update(file="\0.mp4"),
        'videos whose "file" is no name',
        1,
    ),
    "image lacks keys": (
        lambda d: (image(d, 0).pop("height"), image(d, 0).pop("width")),
        "images that lack a key",
        1,
    ),
    "no size": (lambda d: image(d, 0).update(height=0), "images without a size", 1),
    "nothing annotated": (
        lambda d: [i.update(annotated=False) for i in d.data["images"]],
        "no annotated frame",
        1,
    ),
    "instance twice": (lambda d: box(d, 1).update(image_id=1), "instances twice in one frame", 1),
    "category twice": (
        lambda d: d.data["categories"].append({"id": 3, "name": "cow"}),
        "categories that share an id or a name",
        1,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_an_error_with_its_count(fault: str, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(lengths=(5, 3))
    break_it, kind, count = FAULTS[fault]
    break_it(dataset)
    assert check(dataset)[kind] == count
    report = check_dataset(dataset.json_file, dataset.root)
    assert not report.ok
    assert any(line.startswith(f"error: {kind}: {count} (") for line in report.lines())


WARNINGS: dict[str, tuple[Break, str]] = {
    "order": (
        lambda d: [image(d, n).update(frame_id=4 - n) for n in range(5)],
        "videos numbered in another order than their file names",
    ),
    "size changes": (lambda d: image(d, 1).update(width=33), "videos whose size changes"),
    "truth on unknown": (
        lambda d: image(d, 1).update(annotated=False),
        'annotations on frames marked "annotated": false',
    ),
    "no track": (lambda d: box(d, 0).pop("instance_id"), "some annotations have no instance_id"),
    "no track but -1": (
        lambda d: [box(d, i).update(instance_id=-1, image_id=1) for i in (0, 1)],
        "some annotations have no instance_id",
    ),
    "no tracks": (
        lambda d: [a.pop("instance_id") for a in d.data["annotations"]],
        "no instance_id: slow, medium, fast unknown",
    ),
    "class changes": (lambda d: None, "instances that change their class"),
    "nothing to train on": (
        lambda d: [i.update(is_vid_train_frame=False) for i in d.data["images"]],
        "no frame to train on: is_vid_train_frame is never true",
    ),
}


@pytest.mark.parametrize("oddity", WARNINGS)
def test_what_is_odd_is_a_warning(oddity: str, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(lengths=(5, 3))
    make_odd, kind = WARNINGS[oddity]
    make_odd(dataset)
    assert kind in check(dataset)
    assert check_dataset(dataset.json_file, dataset.root).ok


def test_rounding_at_the_border_is_no_fault(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(lengths=(2,))
    box(dataset, 0)["bbox"] = [-0.6, 4, 33.2, 8]
    assert "boxes outside the image" not in check(dataset)
    box(dataset, 0)["bbox"] = [0, 4, 33.5, 8]
    assert check(dataset)["boxes outside the image"] == 1


def test_frames_are_read_on_request(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(lengths=(70, 3), suffix=".jpg")
    cut = dataset.frame_file(1, 40)
    cut.write_bytes(cut.read_bytes()[:-40])
    dataset.frame_file(2, 1).write_bytes(b"no picture")
    cv2.imwrite(str(dataset.frame_file(1, 3)), np.zeros((20, 20, 3), np.uint8))
    assert not {"corrupt files", "sizes that contradict the JSON"} & check(dataset).keys()
    found = check(dataset, frames=True, workers=2)
    assert found["corrupt files"] == 2
    assert found["sizes that contradict the JSON"] == 1
    (line,) = [
        line
        for line in check_dataset(dataset.json_file, dataset.root, frames=True).lines()
        if "sizes" in line
    ]
    assert "000003.jpg is 20x20, not 32x24" in line


def test_frames_of_video_files(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(lengths=(6, 3), size=(48, 64))
    encode(dataset.root / "a.mp4", moving_pictures(5))
    for entry in dataset.data["images"]:
        video = "a" if entry["video_id"] == 1 else "gone"
        entry["file_name"] = f"{video}.mp4#{entry['frame_id']}"
    found = check(dataset, frames=True)
    assert found["frames beyond their video's end"] == 1
    assert found["missing files"] == 1
    assert "corrupt files" not in found and "sizes that contradict the JSON" not in found


def test_classes_of_the_dataset(make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    kind = "categories that are no class of the dataset"
    assert kind not in check(dataset, classes=["dog", "cow", "cat"])
    assert check(dataset, classes=["cat"])[kind] == 1


def test_examples_are_few(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(lengths=(9,))
    shutil.rmtree(dataset.root / "v1")
    (problem,) = [
        p
        for p in check_dataset(dataset.json_file, dataset.root, max_examples=2).problems
        if p.is_error
    ]
    assert (problem.count, len(problem.examples)) == (9, 2)
    assert str(problem).endswith(", ...)")


def test_a_stray_frame_number_is_one_finding(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(lengths=(3,))
    image(dataset, 2)["frame_id"] = 10**12
    assert check(dataset)["missing frame numbers"] == 1


@pytest.mark.parametrize("content", [None, "", '{"images": [', "[]", '{"images": []}'])
def test_what_cannot_be_checked_is_told(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        check_dataset(path, tmp_path)
