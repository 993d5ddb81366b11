"""Batches copied ahead: in order, all of them, with all that is in them."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes
from hypothesis import given
from hypothesis import strategies as st
from made_datasets import MakeDataset
from package_threads import package_threads, wait_until
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from clab_d2.data import build_vid_test_loader, build_vid_train_loader
from clab_d2.data.device_loader import DeviceLoader, map_tensors, pins_memory, to_device
from clab_d2.engine.hooks import DataOrder
from clab_d2.errors import DataError

MakeCfg = Callable[..., CfgNode]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert package_threads() == []


class Mover:
    """In place of a GPU: notes which batches are under way and which have arrived."""

    def __init__(self) -> None:
        self.moved: list[Any] = []
        self.arrived_in: set[str] = set()
        self.moved_in: set[str] = set()

    def move(self, batch: list[Any]) -> tuple[str, list[Any]]:
        self.moved.append(batch)
        self.moved_in.add(threading.current_thread().name)
        return "under way", batch

    def arrived(self, moved: tuple[str, list[Any]]) -> list[Any]:
        self.arrived_in.add(threading.current_thread().name)
        state, batch = moved
        assert state == "under way"
        return batch

    def round(self, loader: Any) -> DeviceLoader:
        return DeviceLoader(loader, self.move, self.arrived)


def test_the_next_batch_moves_while_the_current_one_is_in_use() -> None:
    mover = Mover()
    loader = mover.round([[n] for n in range(5)])
    assert len(loader) == 5
    got = []
    for number, batch in enumerate(loader):
        got.append(batch)
        wait_until(lambda number=number: len(mover.moved) == min(number + 2, 5))
    assert got == mover.moved == [[n] for n in range(5)]
    assert mover.moved_in == {"clab_d2 prefetcher"}
    assert mover.arrived_in == {threading.current_thread().name}
    assert list(loader) == got, "a loader can be gone through again"
    assert list(mover.round([])) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_of_moved_batches(
    make_dataset: MakeDataset, make_cfg: MakeCfg, num_workers: int
) -> None:
    """Detectron2's loop over the test loader, in its order."""
    dataset = make_dataset((6, 1, 9))
    cfg = make_cfg(dataset, **{"DATALOADER.NUM_WORKERS": num_workers})
    loader = build_vid_test_loader(cfg, dataset.name)
    seen: list[tuple[int, int]] = []

    class Noting(DatasetEvaluator):
        def process(self, inputs: list[dict[str, Any]], outputs: list[Any]) -> None:
            assert outputs == [clip["frame_id"] for clip in inputs]
            seen.extend((clip["video_id"], clip["frame_id"]) for clip in inputs)

        def evaluate(self) -> dict[str, int]:
            return {"frames": len(seen)}

    def model(clips: list[dict[str, Any]]) -> list[int]:
        return [clip["frame_id"] for clip in clips]

    mover = Mover()
    assert inference_on_dataset(model, mover.round(loader), Noting()) == {"frames": 16}
    assert seen == [(v, f) for v, n in ((1, 6), (2, 1), (3, 9)) for f in range(n)]
    assert len(mover.moved) == len(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_a_worker_raises_reaches_the_loop(
    make_dataset: MakeDataset, make_cfg: MakeCfg, num_workers: int
) -> None:
    dataset = make_dataset((12,))
    dataset.frame_file(1, 6).write_bytes(b"")
    options = {"DATALOADER.NUM_WORKERS": num_workers, "DATALOADER.STRICT": True}
    cfg = make_cfg(dataset, **options, **{"TEST.REFERENCES.SAMPLING": "causal"})
    seen = []
    with pytest.raises(DataError, match=r"000006.png: the file is empty"):
        for batch in Mover().round(build_vid_test_loader(cfg, dataset.name)):
            seen += [clip["frame_id"] for clip in batch]
    assert seen == list(range(6))


def test_what_moving_raises_reaches_the_loop() -> None:
    def move(batch: list[int]) -> list[int]:
        if batch == [3]:
            raise RuntimeError("CUDA error: out of memory")
        return batch

    seen = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for batch in DeviceLoader([[n] for n in range(6)], move, lambda batch: batch):
            seen += batch
    assert seen == [0, 1, 2]


def test_a_loop_that_is_left_leaves_no_thread(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    """By a break, and by an exception in the model, out of an endless training loader."""
    cfg = make_cfg(make_dataset((6,)), **{"DATALOADER.NUM_WORKERS": 1})
    for _ in Mover().round(build_vid_train_loader(cfg)):
        assert len(package_threads()) == 1
        break
    wait_until(lambda: not package_threads())

    def run() -> None:
        for _ in Mover().round(build_vid_train_loader(cfg)):
            raise KeyError

    with pytest.raises(KeyError):
        run()
    gc.collect()
    assert not package_threads()


def test_a_resumed_training_finds_the_order(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    """In a loader wrapped for a GPU."""
    cfg = make_cfg(make_dataset((9,)))
    kept = DataOrder(Mover().round(build_vid_train_loader(cfg)))
    kept.trainer = SimpleNamespace(iter=1)
    loader = Mover().round(build_vid_train_loader(cfg))
    DataOrder(loader).load_state_dict(kept.state_dict())
    keys = [clip["frame_id"] for batch in itertools.islice(loader, 3) for clip in batch]
    seed = kept.state_dict()["seed"]
    assert keys == list(itertools.islice(TrainingSampler(9, seed=seed), 4, 10))
    # Another loader is left alone.
    other = DataOrder([1, 2])
    other.load_state_dict(kept.state_dict())
    assert other.state_dict() == {}


def test_for_the_cpu_the_loader_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = [[1]]
    for there, device, pinned in (
        (True, "cpu", False),
        (False, "cuda", False),
        (True, "cuda", True),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pins_memory(device) == pinned
        if not pinned:
            assert to_device(loader, device) is loader


def test_pytorch_pins_all_but_the_truth() -> None:
    """Its thread leaves Detectron2's structures as they are: their few numbers are copied late."""
    truth = Instances((4, 5), gt_boxes=Boxes(torch.zeros(1, 4)), gt_classes=torch.tensor([2]))
    clip = {"images": {3: None}, "file_name": "a", "instances": {3: truth}}
    (pinned,) = pin_memory([clip])
    assert pinned["instances"][3] is truth
    assert pinned == clip


class Pair(NamedTuple):
    """Two of anything."""

    first: Any
    second: Any


def truth_of(rows: int) -> Instances:
    """All that a frame's ground truth may hold, and a field of no type that is known."""
    boxes = torch.arange(4.0 * rows).reshape(rows, 4)
    return Instances(
        (4, 5),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.arange(rows),
        gt_tracks=torch.arange(rows) + 7,
        gt_rotated=RotatedBoxes(torch.ones(rows, 5)),
        gt_masks=BitMasks(torch.ones(rows, 4, 5, dtype=torch.bool)),
        gt_keypoints=Keypoints(torch.ones(rows, 2, 3)),
        gt_polygons=PolygonMasks([[np.array([0.0, 0, 1, 0, 1, 1])] for _ in range(rows)]),
        gt_names=[f"object {row}" for row in range(rows)],
    )


def tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return found


@pytest.mark.parametrize("rows", [0, 2])
def test_every_field_of_the_truth_is_moved(rows: int) -> None:
    truth = truth_of(rows)
    moved = map_tensors(truth, lambda tensor: tensor.to("meta"))
    assert moved.image_size == (4, 5) and len(moved) == rows
    assert moved.get_fields().keys() == truth.get_fields().keys()
    for name in ("gt_boxes", "gt_rotated", "gt_masks", "gt_keypoints"):
        before, after = truth.get(name), moved.get(name)
        assert type(after) is type(before)
        assert (after.device.type, after.tensor.shape) == ("meta", before.tensor.shape)
        assert after.tensor.dtype == before.tensor.dtype
    assert moved.gt_classes.device.type == moved.gt_tracks.device.type == "meta"
    assert moved.gt_names == truth.gt_names and moved.gt_polygons is truth.gt_polygons
    assert all(tensor.device.type == "cpu" for tensor in tensors_of(truth)), "left as it is"
    assert len(tensors_of(truth)) == 6


def test_a_clip_of_many_frames_is_moved() -> None:
    """Whatever it holds and however deep; a missing frame, names and numbers are as they were."""
    clip = {
        "file_name": "a.jpg",
        "height": 4,
        "reference_frame_ids": [2, 3, 4],
        "images": {2: torch.ones(3, 4, 5), 3: torch.full((3, 4, 5), 7), 4: None},
        "instances": {3: truth_of(2), 2: truth_of(0)},
        "proposals": [Pair(torch.ones(2), "a name"), (torch.ones(1), None)],
        "size": torch.Size((4, 5)),
        "later": {"deep": {"er": [{"boxes": Boxes(torch.ones(1, 4))}]}},
    }
    moved = map_tensors(clip, lambda tensor: tensor.to("meta"))
    assert moved.keys() == clip.keys()
    for name in ("file_name", "height", "reference_frame_ids", "size"):
        assert moved[name] == clip[name] and type(moved[name]) is type(clip[name])
    assert list(moved["images"]) == [2, 3, 4] and moved["images"][4] is None
    assert list(moved["instances"]) == [3, 2]
    assert moved["proposals"][0].second == "a name" and moved["proposals"][1][1] is None
    assert moved["later"]["deep"]["er"][0]["boxes"].device.type == "meta"
    # Two images, six tensors in each frame's truth, two proposals, the boxes deep down.
    assert [tensor.device.type for tensor in tensors_of(moved)] == ["meta"] * (2 + 12 + 2 + 1)
    assert {tensor.device.type for tensor in tensors_of(clip)} == {"cpu"}, "left as it is"


nested = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3), st.none(), st.builds(lambda: torch.ones(2))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Pair, inner, inner),
        st.dictionaries(st.integers(0, 9), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(nested)
def test_what_is_mapped_has_its_shape_again(value: Any) -> None:
    """Twice the tensors, nothing else: halved again, they are what they were."""
    doubled = map_tensors(value, lambda tensor: tensor * 2)
    assert all(torch.equal(tensor, torch.full((2,), 2.0)) for tensor in tensors_of(doubled))
    assert repr(map_tensors(doubled, lambda tensor: tensor / 2)) == repr(value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(make_dataset: MakeDataset, make_cfg: MakeCfg) -> None:
    dataset = make_dataset((9,), size=(240, 320))
    batches = {}
    for device in ("cpu", "cuda"):
        cfg = make_cfg(dataset, **{"MODEL.DEVICE": device, "DATALOADER.NUM_WORKERS": 2})
        loader = build_vid_test_loader(cfg, dataset.name)
        assert isinstance(loader, DeviceLoader) == (device == "cuda")
        batches[device] = []
        for (clip,) in loader:
            images = clip["images"]
            assert all(image.device.type == device for image in images.values())
            # Computed on the current stream, which has to wait for the copy.
            batches[device].append({frame: image.float().sum() for frame, image in images.items()})
    for left, right in zip(batches["cpu"], batches["cuda"], strict=True):
        assert {f: v.item() for f, v in left.items()} == {f: v.item() for f, v in right.items()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_all_of_a_clip_gets_to_a_gpu() -> None:
    clips = [
        {"images": {f: torch.full((3, 4, 5), f), f + 1: None}, "instances": {f: truth_of(3)}}
        for f in range(8)
    ]
    arrived = [clip for batch in to_device([[clip] for clip in clips], "cuda") for clip in batch]
    assert len(arrived) == len(clips)
    for clip, moved in zip(clips, arrived, strict=True):
        assert {tensor.device.type for tensor in tensors_of(moved)} == {"cuda"}
        for before, after in zip(tensors_of(clip), tensors_of(moved), strict=True):
            assert torch.equal(before, after.cpu())
