"""Fixtures that all tests share."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_datasets import MadeDataset, MakeDataset

from clab_d2.config import get_clab_cfg
from clab_d2.data import register_coco_vid

REPO_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Path of a file of the official release's results; skips where this clone has it not.

    Small files travel with the project; larger ones lie in ``shared/golden`` beside it.
    """

    def find(name: str) -> Path:
        for folder in (REPO_ROOT / "tests" / "golden", REPO_ROOT.parent / "shared" / "golden"):
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"{name} (over 1 MB) lies in ../shared/golden, which is not beside this clone")

    return find


@pytest.fixture(autouse=True)
def settings_of_the_log() -> Iterator[None]:
    """Tools run in the tests' process set them, and later tests look for messages."""
    logs = [logging.getLogger(name) for name in ("clab_d2", "detectron2", "fvcore")]
    before = [(log.level, log.propagate) for log in logs]
    yield
    for log, (level, propagate) in zip(logs, before, strict=True):
        log.setLevel(level)
        log.propagate = propagate


_numbers = itertools.count()


@pytest.fixture
def make_dataset(tmp_path: Path) -> Iterator[MakeDataset]:
    """Make and register a dataset: videos of the given lengths, then stills.

    Every frame has one object, and pixels that tell its video (red) and its number (green).
    """
    made: list[str] = []

    def make(
        lengths: tuple[int, ...] = (5, 3),
        stills: int = 0,
        size: tuple[int, int] = (24, 32),
        suffix: str = ".png",
    ) -> MadeDataset:
        name = f"made_{next(_numbers)}"
        root = tmp_path / name
        data: dict[str, Any] = {
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
            "videos": [{"id": v, "name": f"v{v}"} for v in range(1, len(lengths) + 1)],
            "images": [],
            "annotations": [],
        }
        frames = [(v, f) for v, n in enumerate(lengths, 1) for f in range(n)]
        frames += [(None, f) for f in range(stills)]
        for number, (video_id, frame_id) in enumerate(frames, 1):
            file_name = f"v{video_id or 'still'}/{frame_id:06d}{suffix}"
            (root / file_name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((*size, 3), (0, frame_id, video_id or 0), np.uint8)
            cv2.imwrite(str(root / file_name), pixels)
            image = {"id": number, "file_name": file_name, "height": size[0], "width": size[1]}
            if video_id is not None:
                image |= {"video_id": video_id, "frame_id": frame_id}
            data["images"].append(image)
            data["annotations"].append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 7 if number % 2 else 3,
                    "bbox": [2, 4, 10, 8],
                    "area": 80,
                    "iscrowd": False,
                    "instance_id": video_id or 0,
                }
            )
        dataset = MadeDataset(name, root, data)
        dataset.save()
        register_coco_vid(name, {}, str(dataset.json_file), str(root))
        made.append(name)
        return dataset

    yield make
    for name in made:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def make_cfg() -> Callable[..., CfgNode]:
    """Make a config that trains and tests on a dataset, without workers or resizing."""

    def make(dataset: MadeDataset, **values: Any) -> CfgNode:
        cfg = get_clab_cfg()
        cfg.DATASETS.TRAIN = (dataset.name,)
        cfg.DATASETS.TEST = (dataset.name,)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
        cfg.INPUT.FORMAT = "RGB"
        cfg.INPUT.MIN_SIZE_TRAIN = (0,)
        cfg.INPUT.MIN_SIZE_TEST = 0
        cfg.INPUT.RANDOM_FLIP = "none"
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.IMS_PER_BATCH = 2
        cfg.merge_from_list([part for item in values.items() for part in item])
        return cfg

    return make
