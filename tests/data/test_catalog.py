"""Datasets named by a config: registration, classes, the count of bad frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_datasets import MakeDataset

from clab_d2.config import get_clab_cfg
from clab_d2.data import (
    check_files,
    check_num_classes,
    collect_bad_frames,
    get_video_table,
    register_builtin_datasets,
    register_coco_vid,
    register_datasets_from_config,
)
from clab_d2.data.imagenet_vid import IMAGENET_VID_CLASSES, IMAGENET_VID_WNIDS
from clab_d2.errors import ConfigError, DataError


@pytest.fixture
def mine() -> str:
    """Name of a dataset that the test registers from a config."""
    yield "mine"
    DatasetCatalog.pop("mine", None)
    MetadataCatalog.pop("mine", None)


def _config_naming(*entries: list[str]) -> CfgNode:
    cfg = get_clab_cfg()
    cfg.merge_from_list(["DATASETS.VID", str(list(entries))])
    return cfg


def test_dataset_from_config(make_dataset: MakeDataset, mine: str) -> None:
    made = make_dataset((3,))
    cfg = _config_naming([mine, str(made.json_file), str(made.root)])
    register_datasets_from_config(cfg)
    metadata = MetadataCatalog.get(mine)
    assert metadata.thing_classes == ["cat", "dog"], "known before the frames are loaded"
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert len(DatasetCatalog.get(mine)) == 3
    register_datasets_from_config(cfg)  # in each process, and again: no harm

    other = make_dataset((2,))
    other.data["categories"][0]["name"] = "lynx"
    other.save()
    register_datasets_from_config(_config_naming([mine, str(other.json_file), str(other.root)]))
    assert MetadataCatalog.get(mine).thing_classes == ["lynx", "dog"]
    assert len(DatasetCatalog.get(mine)) == 2
    assert get_video_table(mine).image_root == str(other.root)


def test_mistakes_in_the_config(make_dataset: MakeDataset, mine: str) -> None:
    made = make_dataset((3,))
    with pytest.raises(ConfigError, match=r"DATASETS.VID: \['mine'\] is not \[name, json_file,"):
        register_datasets_from_config(_config_naming([mine]))
    with pytest.raises(ConfigError, match="the name 'imagenet_vid_val' is taken"):
        register_datasets_from_config(
            _config_naming(["imagenet_vid_val", str(made.json_file), str(made.root)])
        )
    with pytest.raises(DataError, match=r"nowhere.json: no such annotation file"):
        register_datasets_from_config(_config_naming([mine, "nowhere.json", ""]))
    assert mine not in DatasetCatalog


def test_number_of_classes(make_dataset: MakeDataset, mine: str) -> None:
    made = make_dataset((3,))
    cfg = _config_naming([mine, str(made.json_file), str(made.root)])
    register_datasets_from_config(cfg)
    cfg.DATASETS.TEST = (mine,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 30
    with pytest.raises(
        ConfigError,
        match=r"NUM_CLASSES is 30, but dataset 'mine' has 2 class\(es\); "
        r"set MODEL.ROI_HEADS.NUM_CLASSES 2",
    ):
        check_num_classes(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    check_num_classes(cfg)
    cfg.DATASETS.TRAIN = ("yours",)
    with pytest.raises(ConfigError, match=r"dataset 'yours' is not registered; .*imagenet_vid_val"):
        check_num_classes(cfg)


def _reverse(categories: list[dict]) -> None:
    categories.reverse()


def _rename(categories: list[dict]) -> None:
    categories[0]["name"] = "lynx"


def _drop(categories: list[dict]) -> None:
    categories.pop()


def _add(categories: list[dict]) -> None:
    categories.append({"id": 8, "name": "lynx"})


@pytest.mark.parametrize("train", [("one", "two"), ("one",), ()])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_reverse, "the order differs: number 0 is cat in one, dog in the other"),
        (_rename, "the second lacks cat; the second has besides lynx"),
        (_drop, "the second lacks dog"),
        (_add, "the second has besides lynx"),
    ],
)
def test_sets_of_different_classes(
    make_dataset: MakeDataset,
    make_cfg: Callable[..., CfgNode],
    change: Callable[[list[dict]], None],
    message: str,
    train: tuple[str, ...],
) -> None:
    """Two training sets, a training and a test set, or two test sets; read by now or not."""
    one, two = make_dataset((3,)), make_dataset((3,))
    cfg = make_cfg(one)
    sets = {"one": one.name, "two": two.name}
    cfg.DATASETS.TRAIN = tuple(sets[name] for name in train)
    cfg.DATASETS.TEST = tuple(sets[name] for name in sets if name not in train)
    check_num_classes(cfg)
    change(two.data["categories"])
    two.data["annotations"] = [a for a in two.data["annotations"] if a["category_id"] == 3]
    two.save()
    message = rf"'{one.name}' and '{two.name}' have different classes \({message}\).* in that order"
    for load in (False, True):
        if load:
            DatasetCatalog.get(two.name)
        with pytest.raises(ConfigError, match=message) as caught:
            check_num_classes(cfg)
        assert "\n" not in str(caught.value)


def test_declared_classes_decide_whatever_the_json_says(
    make_dataset: MakeDataset, make_cfg: Callable[..., CfgNode], mine: str
) -> None:
    """A dataset registered with classes is read by their names."""
    made = make_dataset((3,))
    made.data["categories"].reverse()
    made.save()
    register_coco_vid(
        mine, {"thing_classes": ["cat", "dog"]}, str(made.json_file), str(made.root)
    )
    other = make_dataset((3,))
    cfg = make_cfg(other)
    cfg.DATASETS.TEST = (mine,)
    check_num_classes(cfg)
    [first, *_] = DatasetCatalog.get(mine)
    assert first["annotations"][0]["category_id"] == 1, "a dog, by its name"


def test_classes_of_a_missing_file_are_told_where_it_is_needed(
    make_dataset: MakeDataset, make_cfg: Callable[..., CfgNode]
) -> None:
    one, two = make_dataset((3,)), make_dataset((3,))
    cfg = make_cfg(one)
    cfg.DATASETS.TEST = (two.name,)
    two.json_file.unlink()
    check_num_classes(cfg)
    with pytest.raises(DataError, match="no such annotation file"):
        check_files(cfg.DATASETS.TEST)


def test_builtin_datasets() -> None:
    register_builtin_datasets()  # a second time does nothing
    for name in ("imagenet_vid_train", "imagenet_det_30plus1cls", "mini_vid_val", "mini_vid_det"):
        metadata = MetadataCatalog.get(name)
        assert name in DatasetCatalog
        assert metadata.thing_classes == list(IMAGENET_VID_CLASSES)
        assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(30)}
    metadata = MetadataCatalog.get("mini_vid_det")
    assert metadata.json_file.endswith("mini_vid/annotations/imagenet_det_30plus1cls.json")
    assert metadata.image_root.endswith("mini_vid/Data/DET")
    for seed in (7, 8):
        metadata = MetadataCatalog.get(f"mini_vid_seed_{seed}_val_all_frames")
        tree = f"mini_vid_seed_{seed}"
        assert metadata.json_file.endswith(f"{tree}/annotations/imagenet_vid_val.json")
        assert metadata.image_root.endswith(f"{tree}/Data/VID")
    assert len(set(IMAGENET_VID_CLASSES)) == len(set(IMAGENET_VID_WNIDS)) == 30


def test_bad_frames_are_collected_once(
    make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_dataset((3, 2))
    assert collect_bad_frames([made.name]) == []
    table = get_video_table(made.name)
    assert [table.mark_bad(2, 1), table.mark_bad(1, 0), table.mark_bad(2, 1)] == [True, True, False]
    expected = [str(made.frame_file(1, 0)), str(made.frame_file(2, 1))]
    assert collect_bad_frames([made.name, made.name]) == expected
    assert "2 frame(s) could not be read and were left out: " + ", ".join(expected) in caplog.text


def test_files_needed_later(make_dataset: MakeDataset) -> None:
    made = make_dataset((3,))
    check_files([made.name])
    whole = made.json_file.read_text()
    for content, message in (
        (whole[: len(whole) // 2], r"annotations.json: not a whole JSON file"),
        (whole.replace('"image_id"', '"of"'), r'annotations.json: annotations\[0\] .*"image_id"'),
        (whole.replace("v1/", "v9/"), r"none of 1 frame\(s\) looked for is there, .*v9/000000.png"),
    ):
        made.json_file.write_text(content)
        with pytest.raises(DataError, match=message):
            check_files([made.name])
    made.json_file.unlink()
    with pytest.raises(DataError, match=r"annotations.json: no such annotation file"):
        check_files([made.name])
    with pytest.raises(ConfigError, match=r"dataset 'yours' is not registered"):
        check_files(["yours"])
    with pytest.raises(ConfigError, match=r"'coco_2017_val' is no video dataset"):
        check_files(["coco_2017_val"])
