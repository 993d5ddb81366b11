"""Reading CocoVID: what comes out, and one clear line for each way a file can be wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from made_datasets import MadeDataset, MakeDataset

from clab_d2.data import get_video_table, load_coco_vid, register_coco_vid
from clab_d2.errors import ConfigError, DataError


def _load(dataset: MadeDataset, **options: Any) -> list[dict[str, Any]]:
    return load_coco_vid(str(dataset.json_file), str(dataset.root), dataset.name, **options)


def test_frames_come_video_by_video_in_order(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((3, 2), stills=2)
    dataset.data["images"].reverse()
    dataset.save()
    records = DatasetCatalog.get(dataset.name)
    places = [(r["video_id"], r["frame_id"], r["num_frames"]) for r in records]
    assert places[:5] == [(1, 0, 3), (1, 1, 3), (1, 2, 3), (2, 0, 2), (2, 1, 2)]
    assert {place[1:] for place in places[5:]} == {(0, 1)}, "a still is a video of one frame"
    assert len({video_id for video_id, _, _ in places}) == 4
    first = records[0]
    assert first["file_name"] == f"{dataset.root}/v1/000000.png"
    assert (first["height"], first["width"], first["image_id"]) == (24, 32, 1)
    assert first["dataset_name"] == dataset.name
    assert first["annotations"] == [
        {
            "bbox": [2, 4, 10, 8],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 1,
            "instance_id": 1,
            "iscrowd": 0,
        }
    ]
    metadata = MetadataCatalog.get(dataset.name)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "vid"


def test_key_frames(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((4,))
    images = dataset.data["images"]
    assert all(r["is_key_frame"] for r in _load(dataset)), "any frame, unless some are marked"
    images[0]["is_vid_train_frame"] = True
    images[1]["is_vid_train_frame"] = False
    images[2] |= {"is_vid_train_frame": True, "annotated": False}
    dataset.save()
    records = _load(dataset)
    assert [r["is_key_frame"] for r in records] == [True, False, False, False]
    assert [r["annotated"] for r in records] == [True, True, False, True]
    assert _load(dataset, key_frames_only=True) == records[:1]


def test_plain_coco_is_stills(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((), stills=3)
    del dataset.data["videos"]
    for annotation in dataset.data["annotations"]:
        del annotation["instance_id"], annotation["iscrowd"]
    dataset.data["annotations"][1]["instance_id"] = None
    dataset.save()
    records = _load(dataset)
    assert [(r["frame_id"], r["num_frames"]) for r in records] == [(0, 1)] * 3
    assert [r["annotations"][0]["instance_id"] for r in records] == [-1] * 3


def test_declared_classes_choose_among_the_categories(make_dataset: MakeDataset) -> None:
    """As ImageNet DET's "other" class is left out."""
    dataset = make_dataset((4,))
    name = f"{dataset.name}_dogs"
    root = str(dataset.root)
    register_coco_vid(name, {"thing_classes": ["wolf", "dog"]}, str(dataset.json_file), root)
    try:
        records = DatasetCatalog.get(name)
        classes = [[a["category_id"] for a in r["annotations"]] for r in records]
        assert classes == [[1], [], [1], []]
        assert MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id == {7: 1}
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_none_of_the_declared_classes(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((1,))
    MetadataCatalog.get(dataset.name).set(thing_classes=["wolf", "fox"])
    with pytest.raises(DataError, match=r"none of its categories \(cat, dog\) is a class .*wolf"):
        _load(dataset)


def test_empty_video_is_left_out_with_a_warning(
    make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_dataset((2,))
    dataset.data["videos"].append({"id": 9, "name": "nothing"})
    dataset.save()
    assert len(_load(dataset)) == 2
    assert "1 video(s) have no frame and are left out: nothing" in caplog.text


def test_shots(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((5, 3))
    dataset.data["videos"][0]["shots"] = [0, 2, 4]
    dataset.save()
    _load(dataset)
    table = get_video_table(dataset.name)
    assert (table.shots(1), table.shots(2)) == ((0, 2, 4), (0,))


@pytest.mark.parametrize("shots", [[], [1, 3], [0, 3, 3], [0, 4, 2], [0, 5], [0, "2"], 2])
def test_shots_that_are_none(make_dataset: MakeDataset, shots: Any) -> None:
    dataset = make_dataset((5,))
    dataset.data["videos"][0]["shots"] = shots
    dataset.save()
    with pytest.raises(DataError, match=r'video v1 has .* as "shots"; .* of its 5 frames'):
        _load(dataset)


def _change(key: str, index: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for name, value in values.items():
            if value is ...:
                del data[key][index][name]
            else:
                data[key][index][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), 'no list "images"'),
        (lambda d: d.pop("annotations"), 'no list "annotations"'),
        (lambda d: d.update(categories={}), 'no list "categories"'),
        (lambda d: d.update(images=[]), '"images" is empty'),
        (_change("images", 1, height=...), r'images\[1\] \(id 2\) has no "height"'),
        (_change("images", 1, width="32"), r"has '32' as \"width\"; it must be an integer"),
        (_change("images", 1, width=0), r"image 2 \(v1/000001.png\) has size 0x24"),
        (_change("images", 1, file_name=...), 'has no "file_name"; it must be a string'),
        (_change("images", 1, id=...), r'images\[1\] has no "id"'),
        (_change("images", 1, id=1), "two images have the id 1"),
        (_change("images", 1, frame_id=...), r'images\[1\] \(id 2\) has no "frame_id"'),
        (_change("images", 1, frame_id=0), "video v1 has two frames with frame_id 0"),
        (_change("images", 4, frame_id=5), "video v1 has no frame with frame_id 4 but one with 5"),
        (_change("images", 0, frame_id=-1), "video v1 has frame_id -1"),
        (_change("images", 1, video_id=77), r'belongs to video 77, which "videos" does not list'),
        (_change("videos", 1, id=1), "two videos have the id 1"),
        (_change("categories", 1, id=3), "two categories share the id 3"),
        (_change("categories", 1, name="cat"), "two categories share the name 'cat'"),
        (_change("categories", 1, name=...), r'categories\[1\] \(id 7\) has no "name"'),
        (_change("annotations", 2, image_id=99), r'annotation 3 is of image 99, which "images"'),
        (_change("annotations", 2, category_id=4), r"annotation 3 has category 4, which"),
        (_change("annotations", 2, bbox=...), r'annotations\[2\] \(id 3\) has no "bbox"'),
        (_change("annotations", 2, bbox=[1, 2, 3]), r"annotation 3 has bbox \[1, 2, 3\]"),
        (_change("annotations", 2, bbox=[1, 2, -3, 4]), "annotation 3 has bbox .* four finite"),
        (_change("annotations", 2, bbox=[1, 2, float("nan"), 4]), "annotation 3 has bbox"),
        (_change("annotations", 2, bbox=[1, 2, None, 4]), "annotation 3 has bbox"),
        (_change("annotations", 2, instance_id="a"), "has 'a' as \"instance_id\"; it must be an i"),
        (_change("annotations", 2, motion_iou="a"), "has 'a' as \"motion_iou\"; it must be a num"),
        (_change("annotations", 2, area=[1]), r"has \[1\] as \"area\"; it must be a number"),
        (_change("annotations", 2, area=float("nan")), r"has nan as \"area\"; it must be a number"),
        (_change("annotations", 2, motion_iou=float("inf")), "has inf as .* and finite"),
        (_change("annotations", 2, iscrowd="no"), "annotation 3 has iscrowd 'no'; it must be 0"),
        (_change("annotations", 2, iscrowd=float("nan")), "annotation 3 has iscrowd nan"),
        (_change("annotations", 2, bbox=[1, 2, 10**400, 4]), "annotation 3 has bbox .* four"),
        (_change("annotations", 2, bbox=[True, 2, 3, 4]), "annotation 3 has bbox .* four finite"),
        (_change("annotations", 2, instance_id=2**63), "as \"instance_id\"; .* at most 64 bits"),
        (_change("annotations", 2, image_id=10**4000), "0... as \"image_id\"; .* at most 64 bits"),
        (_change("annotations", 2, category_id=-(10**30)), " \"category_id\"; .* at most 64 bits"),
        (_change("images", 1, id=10**30), "as \"id\"; it must be an integer of at most 64 bits"),
        (_change("images", 1, video_id=10**30), "as \"video_id\"; .* at most 64 bits"),
        (_change("images", 1, video_id=[1]), r"has \[1\] as \"video_id\"; it must be an integer"),
        (_change("images", 1, frame_id=10**30), "as \"frame_id\"; .* at most 64 bits"),
        (_change("images", 1, width=2**31), r"image 2 \(v1/000001.png\) has size 2147483648x24"),
        (_change("images", 1, file_name="a\0.png"), "image 2 names 'a.x00.png', which no file can"),
        (_change("images", 1, file_name="\ud800.png"), "image 2 names '.ud800.png', which no file"),
        (_change("videos", 1, file="\ud800.mp4"), "video 2 names '.ud800.mp4', which no file"),
        (_change("videos", 1, id=10**30), r"videos\[1\] .* an integer of at most 64 bits"),
        (_change("categories", 1, id=10**30), r"categories\[1\] .* an integer of at most 64 bits"),
        (_change("categories", 1, id="a\nb"), "has 'a.nb' as \"id\""),
        (lambda d: d.update(videos=None), 'no list "videos"'),
        (lambda d: d.update(videos=3), 'no list "videos"'),
        (lambda d: d.update(annotations=[]), "no frame is annotated"),
        (
            lambda d: [image.update(annotated=False) for image in d["images"]],
            "no frame is annotated",
        ),
    ],
)
def test_each_mistake_is_named(
    make_dataset: MakeDataset, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    dataset = make_dataset((5, 3))
    change(dataset.data)
    dataset.save()
    with pytest.raises(DataError, match=message) as caught:
        _load(dataset)
    text = str(caught.value)
    assert text.startswith(str(dataset.json_file)), "the file is named"
    assert "\n" not in text


def test_truncated_json(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((2,))
    whole = dataset.json_file.read_text()
    dataset.json_file.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"annotations.json: not a whole JSON file .*make it again"):
        _load(dataset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not a whole JSON file .*recursion"),
        ('{"images": ' * 100_000, "not a whole JSON file .*recursion"),
        ('{"images": [' + "9" * 5000 + "]}", "not a whole JSON file .*digits"),
    ],
    ids=["lists", "objects", "digits"],
)
def test_json_that_python_cannot_read(
    make_dataset: MakeDataset, text: str, message: str
) -> None:
    dataset = make_dataset((2,))
    dataset.json_file.write_text(text)
    with pytest.raises(DataError, match=rf"annotations.json: {message}"):
        _load(dataset)


def test_a_pipe_is_not_waited_for(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((2,))
    dataset.json_file.unlink()
    os.mkfifo(dataset.json_file)
    with pytest.raises(DataError, match=r"annotations.json: a named pipe, not a file"):
        _load(dataset)


def test_a_video_of_no_name(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((2,))
    dataset.data["videos"][0]["name"] = None
    dataset.save()
    assert get_video_table(dataset.name).video_name(1) == ""


def test_frames_numbered_as_a_folder_lists_them(
    make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture
) -> None:
    """10.png before 2.png: warned of once, with an example."""
    dataset = make_dataset((12, 12, 3))
    for image in dataset.data["images"]:
        names = sorted(f"v{image['video_id']}/{n}.png" for n in range(12))
        image["file_name"] = names[image["frame_id"]]
    dataset.save()
    _load(dataset)
    (record,) = [r for r in caplog.records if "frame_id disagrees" in r.message]
    assert (
        "of 2 video(s): of v1, frame 3 is v1/11.png and frame 4 is v1/2.png; if the names are right"
        in record.message
    )


def test_missing_json(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((2,))
    dataset.json_file.unlink()
    with pytest.raises(DataError, match=r"annotations.json: no such annotation file; .*README"):
        _load(dataset)


def test_video_table(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((3, 2), stills=1)
    table = get_video_table(dataset.name)
    assert len(table) == 6 and len(table.video_ids) == 3
    assert [table.num_frames(v) for v in table.video_ids] == [3, 2, 1]
    assert table.file_name(2, 1) == str(dataset.frame_file(2, 1))
    assert table.size(2, 1) == (24, 32)
    assert table.video_name(2) == "v2"
    assert [table.file_name(v, 0) for v in table.video_ids] == [
        str(dataset.root / name) for name in ("v1/000000.png", "v2/000000.png", "vstill/000000.png")
    ]
    for frame_id in (-1, 3):
        with pytest.raises(IndexError):
            table.file_name(1, frame_id)


def test_video_table_is_kept_until_the_file_changes(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((3,))
    table = get_video_table(dataset.name)
    table.mark_bad(1, 2)
    DatasetCatalog.get(dataset.name)
    assert get_video_table(dataset.name) is table
    assert table.bad_frames() == [str(dataset.frame_file(1, 2))]
    dataset.data["images"].pop()
    dataset.data["annotations"].pop()
    dataset.save()
    assert get_video_table(dataset.name).num_frames(1) == 2


def test_table_of_something_else() -> None:
    with pytest.raises(ConfigError, match="'nowhere' is not a registered video dataset"):
        get_video_table("nowhere")
