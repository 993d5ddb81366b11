"""Items made ahead in a thread: order, bounds, exceptions, and that no thread is left behind."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.build import AspectRatioGroupedDataset
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import MakeDataset
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from clab_d2.data import build_vid_test_loader, build_vid_train_loader
from clab_d2.data.prefetch import Background, DeviceLoader, map_tensors, pins_memory, to_device
from clab_d2.engine.hooks import DataOrder, TrainingStream
from clab_d2.errors import DataError

MakeCfg = Callable[..., CfgNode]


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("clab_d2")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Numbers:
    """An endless iterator that notes what it gave, and where and whether it was closed."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.closed_in: str | None = None

    def __iter__(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                self.given.append(number)
                yield number
        finally:
            self.closed_in = threading.current_thread().name


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 30), st.integers(1, 5), st.booleans())
def test_all_items_in_order(length: int, ahead: int, fails: bool) -> None:
    def items() -> Iterator[int]:
        yield from range(length)
        if fails:
            raise DataError("frame 7 is gone")

    background = Background(items(), ahead)
    got, failed = [], False
    try:
        for item in background:
            got.append(item)
    except DataError as error:
        failed = str(error) == "frame 7 is gone"
    assert (got, failed) == (list(range(length)), fails)
    assert list(background) == [], "the end is the end"


def test_items_before_an_exception_come_first() -> None:
    background = Background(iter([1, 2, 0, 3]), ahead=4)
    inverse = Background((1 / n for n in background), ahead=4)
    assert (next(inverse), next(inverse)) == (1, 0.5)
    with pytest.raises(ZeroDivisionError) as caught:
        next(inverse)
    frames = [entry.name for entry in caught.traceback]
    assert "<genexpr>" in frames, "the traceback shows where it came up"
    assert list(inverse) == []
    background.close()


def test_no_more_than_asked_for_is_made() -> None:
    numbers = Numbers()
    with Background(numbers, ahead=3) as background:
        wait_until(lambda: len(numbers.given) == 3)
        for expected in range(20):
            assert next(background) == expected
            wait_until(lambda expected=expected: len(numbers.given) == expected + 4)
        time.sleep(0.05)
        assert len(numbers.given) == 23
    assert numbers.closed_in == "clab_d2 prefetch"
    assert list(background) == []


def test_making_goes_on_while_an_item_is_in_use() -> None:
    """The next item is made although the reader does nothing but hold the one before."""
    numbers = Numbers()
    with Background(numbers, ahead=1) as background:
        assert next(background) == 0
        wait_until(lambda: numbers.given == [0, 1])


@pytest.mark.parametrize("how", ["close", "exception", "let go of", "cycle"])
def test_the_thread_ends_with_its_reader(how: str) -> None:
    numbers = Numbers()
    background = Background(numbers, ahead=2)
    next(background)
    assert len(threads()) == 1
    if how == "close":
        background.close()
        background.close()
    elif how == "exception":
        with pytest.raises(KeyError), background:
            raise KeyError
    elif how == "cycle":
        background.itself = background
        del background
        gc.collect()
    else:
        del background
    assert not threads()
    assert numbers.closed_in == "clab_d2 prefetch"


def test_newest_drops_what_comes_too_late() -> None:
    lets_go = threading.Semaphore(0)
    numbers = Numbers()

    def gated() -> Iterator[int]:
        for number in numbers:
            lets_go.acquire()
            if number == 12:
                return
            yield number

    with Background(gated(), newest=True) as background:
        lets_go.release(5)
        wait_until(lambda: len(numbers.given) == 6)
        assert next(background) == 4
        lets_go.release(1)
        assert next(background) == 5, "waits where there is no newer one"
        lets_go.release(7)
        wait_until(lambda: numbers.closed_in is not None)
        assert list(background) == [11], "the last one is not lost to the end"


def test_how_far_ahead_must_make_sense() -> None:
    with pytest.raises(ValueError, match="ahead is 0"):
        Background([1], ahead=0)


def test_a_process_ends_with_a_thread_at_work() -> None:
    """Nobody closed it, and its items are endless."""
    code = (
        "import itertools\n"
        "from clab_d2.data.prefetch import Background\n"
        "kept = Background(itertools.count())\n"
        "print(next(kept))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr[-500:]) == (0, "0\n", done.stderr[-500:])
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr


# ------------------------------------------------------------------------------ loaders


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
    assert mover.moved_in == {"clab_d2 prefetch"}
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
        assert len(threads()) == 1
        break
    wait_until(lambda: not threads())

    def run() -> None:
        for _ in Mover().round(build_vid_train_loader(cfg)):
            raise KeyError

    with pytest.raises(KeyError):
        run()
    gc.collect()
    assert not threads()


@pytest.mark.parametrize("grouped", [True, False])
def test_a_resumed_training_finds_the_sampler(
    make_dataset: MakeDataset, make_cfg: MakeCfg, grouped: bool
) -> None:
    """Under Detectron2's layers and this one."""
    cfg = make_cfg(make_dataset((9,)), **{"DATALOADER.ASPECT_RATIO_GROUPING": grouped})
    inner = build_vid_train_loader(cfg)
    assert isinstance(inner, AspectRatioGroupedDataset) == grouped
    loader = Mover().round(inner)
    order = DataOrder(loader, clips_per_iteration=2)
    order.load_state_dict({"seed": 5, "clips_seen": 4})
    keys = [clip["frame_id"] for batch in itertools.islice(loader, 3) for clip in batch]
    assert keys == list(itertools.islice(TrainingStream(9, seed=5), 4, 10))


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
    clip = {"image": None, "reference_images": {3: None}, "file_name": "a", "instances": truth}
    (pinned,) = pin_memory([clip])
    assert pinned["instances"] is truth
    assert pinned == clip


def clip_of(**more: Any) -> dict[str, Any]:
    return {
        "file_name": "a.jpg",
        "frame_id": 3,
        "image": torch.full((3, 4, 5), 7, dtype=torch.uint8),
        "reference_images": {2: torch.ones(3, 4, 5), 4: None},
        **more,
    }


def test_every_tensor_of_a_clip_is_moved() -> None:
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    truth = Instances((4, 5), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([2]))
    clip = clip_of(instances=truth)
    seen: list[Tensor] = []

    def double(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor * 2

    moved = map_tensors(clip, double)
    assert len(seen) == 4
    assert moved["file_name"] == "a.jpg" and moved["frame_id"] == 3
    assert torch.equal(moved["image"], clip["image"] * 2)
    assert moved["reference_images"][4] is None
    assert torch.equal(moved["reference_images"][2], torch.ones(3, 4, 5) * 2)
    assert moved["instances"].image_size == (4, 5)
    assert moved["instances"].gt_boxes.tensor.tolist() == [[2, 4, 6, 8]]
    assert moved["instances"].gt_classes.tolist() == [4]
    assert truth.gt_boxes.tensor is boxes and clip["image"].max() == 7, "the clip is left as it is"
    unreadable = map_tensors(clip_of(image=None, reference_images={}), double)
    assert unreadable["image"] is None and "instances" not in unreadable


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
            assert clip["image"].device.type == device
            images = {clip["frame_id"]: clip["image"], **clip["reference_images"]}
            # Computed on the current stream, which has to wait for the copy.
            batches[device].append({frame: image.float().sum() for frame, image in images.items()})
    for left, right in zip(batches["cpu"], batches["cuda"], strict=True):
        assert {f: v.item() for f, v in left.items()} == {f: v.item() for f, v in right.items()}
