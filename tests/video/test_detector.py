"""Detection in a video, by a model that only notes what it is given."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numbered_frames import FakeCapture, grey
from package_threads import package_threads
from stub_detector import NotingModel, make_cfg
from tiny_videos import CLASSES, make_tiny_videos

from clab_d2.data import build_vid_test_loader, register_datasets_from_config
from clab_d2.data.clip_augmentation import OpenCVResizeTransform
from clab_d2.errors import ConfigError, DataError
from clab_d2.video import FrameResult, VideoDetector, VideoSource
from clab_d2.video.detector import Mode


def run(cfg: CfgNode, source: Any, mode: Mode = "offline") -> tuple[NotingModel, list[FrameResult]]:
    model = NotingModel()
    return model, list(VideoDetector(cfg, model).detect(source, mode))


def test_frames_come_in_order_with_their_detections() -> None:
    frames = [grey(n) for n in range(7)]
    _, results = run(make_cfg(), frames)
    assert [int(r.image[0, 0, 0]) for r in results] == list(range(7))
    for instances in (r.instances for r in results):
        assert instances.image_size == (24, 32)
        assert instances.pred_boxes.tensor.tolist() == [[0, 0, 32, 24]]


def test_adaptive_references_are_read_once_and_first() -> None:
    model, _ = run(make_cfg("adaptive", 4), [grey(n) for n in range(10)])
    assert [clip["reference_frame_ids"] for clip in model.clips] == [
        [0, 3, 6, 9, key] for key in range(10)
    ]
    assert [list(clip["images"]) for clip in model.clips] == [
        [0, 3, 6, 9], [1], [2], [], [4], [5], [], [7], [8], [],
    ]  # fmt: skip


def test_a_stream_uses_past_frames_only() -> None:
    stream = iter([grey(n) for n in range(6)])
    for source, mode in ((stream, "offline"), ([grey(0)] * 6, "online")):
        model, results = run(make_cfg("adaptive", 3), source, mode)
        assert len(results) == 6
        for key, clip in enumerate(model.clips):
            assert clip["reference_frame_ids"] == [max(key - k, 0) for k in (3, 2, 1, 0)]
            assert list(clip["images"]) == [key]  # the others have been key frames


def test_a_stream_is_detected_frame_by_frame_as_it_comes() -> None:
    given_out: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for number in range(10**9):
            given_out.append(number)
            yield grey(number)

    cfg = make_cfg("fixed", 4, **{"TEST.KEY_FRAMES_PER_BATCH": 4})
    results = VideoDetector(cfg, NotingModel()).detect(camera())
    for number in range(50):
        assert int(next(results).image[0, 0, 0]) == number
        assert given_out[-1] == number


def test_a_slow_model_gets_the_newest_frame_of_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one taken in when the model began with the frame before."""
    capture = FakeCapture(2)
    monkeypatch.setattr(cv2, "VideoCapture", lambda index: capture)
    numbers, awaited = [], []

    class SlowModel(NotingModel):
        def forward(self, clips: list[dict[str, Any]]) -> list[dict[str, Instances]]:
            (image,) = clips[0]["images"].values()
            numbers.append(int(image[2, 0, 0]))
            awaited.append(min(capture.taken + 30, 200))
            while capture.taken < awaited[-1]:
                time.sleep(0.001)
            return super().forward(clips)

    results = list(VideoDetector(make_cfg(num=2), SlowModel()).detect("2"))
    assert [int(r.image[0, 0, 2]) for r in results] == numbers
    assert numbers == sorted(set(numbers)) and numbers[-1] == 200
    assert len(numbers) <= 9, "frames in between were dropped"
    # What the camera had given when the model was done, but for the one just being taken in.
    assert all(new >= old - 1 for new, old in zip(numbers[1:], awaited, strict=False))
    assert not package_threads()


class CountingSource(VideoSource):
    """Counts reads, and knows which of its frames are still held by anyone."""

    def __init__(self, num_frames: int, damaged: tuple[int, ...] = ()) -> None:
        self.name, self.num_frames, self.damaged = "counted", num_frames, damaged
        self.height, self.width = 24, 32
        self.reads: list[int] = []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def read(self, index: int) -> np.ndarray:
        if not 0 <= index < self.num_frames:
            raise IndexError(index)
        self.reads.append(index)
        if index in self.damaged:
            raise DataError(f"counted#{index} is damaged")

        class Frame(np.ndarray):
            pass

        frame = grey(index).view(Frame)
        self.alive.add(_Handle.of(frame))
        return frame


class _Handle:
    """Lives as long as the array it hangs on: arrays themselves cannot be in a WeakSet."""

    @staticmethod
    def of(frame: Any) -> _Handle:
        frame.handle = _Handle()
        return frame.handle


# Ready for the model, and in the thread's hands.
AHEAD = 3


@pytest.mark.parametrize(("num", "stride"), [(4, 1), (4, 3), (2, 5)])
def test_looking_ahead_reads_once_and_holds_the_window_only(num: int, stride: int) -> None:
    source = CountingSource(60)
    reach = (num // 2 + 1) * stride
    detector = VideoDetector(make_cfg("fixed", num, stride), NotingModel())
    most = 0
    for _ in detector.detect(source):
        detector.model.batches.clear()
        most = max(most, len(source.alive))
    assert source.reads == list(range(60))
    assert num // 2 < most <= reach + 1 + AHEAD


def test_a_long_video_is_not_held() -> None:
    source = CountingSource(500)
    detector = VideoDetector(make_cfg("adaptive", 4), NotingModel())
    for _ in detector.detect(source):
        detector.model.batches.clear()
        assert len(source.alive) <= 3 + AHEAD
    assert len(source.reads) == 503  # the three references beyond the first frame come twice


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_next_frames_are_read_while_the_model_has_the_current_ones(batch_size: int) -> None:
    source = CountingSource(20)
    cfg = make_cfg("causal", 2, **{"TEST.KEY_FRAMES_PER_BATCH": batch_size})

    class WaitingModel(NotingModel):
        def forward(self, clips: list[dict[str, Any]]) -> list[dict[str, Instances]]:
            wanted = min(clips[-1]["frame_id"] + batch_size + 2, source.num_frames)
            deadline = time.monotonic() + 10
            while len(source.reads) < wanted and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert len(source.reads) == wanted, "the next batch and one frame more"
            return super().forward(clips)

    results = list(VideoDetector(cfg, WaitingModel()).detect(source))
    assert [int(r.image[0, 0, 0]) for r in results] == list(range(20))
    assert not package_threads()


def test_the_thread_ends_with_the_generator() -> None:
    for how in ("closed", "let go of", "the model fails", "another begins"):
        source = CountingSource(50)
        detector = VideoDetector(make_cfg("fixed", 4), NotingModel())
        results = detector.detect(source)
        for _ in range(3):
            next(results)
        assert len(package_threads()) == 1
        if how == "closed":
            results.close()
        elif how == "the model fails":
            detector.model.forward = None
            with pytest.raises(TypeError):
                next(results)
        elif how == "another begins":
            assert len(list(detector.detect([grey(0)]))) == 1
            with pytest.raises(RuntimeError, match="one video at a time"):
                next(results)
        del results
        assert not package_threads(), how
        assert max(source.reads) < 15
        assert source.read(40)[0, 0, 0] == 40, "an open source is the caller's again"


def test_what_goes_wrong_in_reading_is_raised_at_its_frame() -> None:
    class FailingSource(CountingSource):
        def read(self, index: int) -> np.ndarray:
            if index == 4:
                raise PermissionError("the disk is gone")
            return super().read(index)

    shown = []
    with pytest.raises(PermissionError, match="the disk is gone"):
        detector = VideoDetector(make_cfg("causal", 2), NotingModel())
        for result in detector.detect(FailingSource(9)):
            shown.append(int(result.image[0, 0, 0]))
    assert shown == [0, 1, 2, 3]
    assert not package_threads()


@pytest.mark.parametrize(
    ("sampling", "num", "stride"), [("adaptive", 4, 1), ("fixed", 6, 1), ("fixed", 4, 3)]
)
def test_each_frame_is_resized_once(
    sampling: str, num: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resized = []
    whole = OpenCVResizeTransform.apply_image

    def counting(self: Any, image: np.ndarray, interp: int | None = None) -> np.ndarray:
        resized.append(int(image[0, 0, 0]))
        return whole(self, image, interp)

    monkeypatch.setattr(OpenCVResizeTransform, "apply_image", counting)
    options = {"INPUT.MIN_SIZE_TEST": 12, "INPUT.RESIZE_BACKEND": "opencv"}
    run(make_cfg(sampling, num, stride, **options), CountingSource(20))
    assert sorted(resized) == list(range(20))


@pytest.mark.parametrize("sampling", ["adaptive", "fixed", "causal"])
def test_damaged_frames_keep_their_place(sampling: str, caplog) -> None:
    source = CountingSource(9, damaged=(0, 3, 4))
    detector = VideoDetector(make_cfg(sampling, 4), NotingModel())
    with caplog.at_level(logging.WARNING):
        results = list(detector.detect(source))
    assert detector.unreadable_frames == [0, 3, 4]
    assert "3 of 9 frames are damaged" in caplog.text
    assert len(results) == 9
    shown = [int(r.image[0, 0, 0]) for r in results]
    assert shown == [0, 1, 2, 2, 2, 5, 6, 7, 8]  # black, then the last good one
    assert [len(r.instances) for r in results] == [0, 1, 1, 0, 0, 1, 1, 1, 1]


def test_frames_of_changing_size() -> None:
    frames = [grey(1), grey(2, (30, 20)), grey(3)]
    model, results = run(make_cfg(**{"INPUT.MIN_SIZE_TEST": 12}), frames)
    assert [r.instances.image_size for r in results] == [(24, 32), (30, 20), (24, 32)]
    assert model.clips[0]["images"][1].shape == (3, 18, 12)


def test_channel_order_follows_the_config() -> None:
    frame = np.full((24, 32, 3), (1, 2, 3), np.uint8)
    for order, expected in (("RGB", [1, 2, 3]), ("BGR", [3, 2, 1])):
        model, results = run(make_cfg(**{"INPUT.FORMAT": order}), [frame])
        assert model.clips[0]["images"][0][:, 0, 0].tolist() == expected
        assert results[0].image[0, 0].tolist() == [1, 2, 3]  # what is given out is RGB


def test_a_single_frame_model_reads_no_references() -> None:
    cfg = make_cfg()
    source = CountingSource(5)
    for mode in get_args(Mode):
        source.reads.clear()
        model = NotingModel()
        model.needs_references = False
        list(VideoDetector(cfg, model).detect(source, mode))
        assert source.reads == list(range(5))
        assert all(clip["reference_frame_ids"] == [] for clip in model.clips)


def test_one_video_at_a_time() -> None:
    detector = VideoDetector(make_cfg(), NotingModel())
    first = detector.detect([grey(n) for n in range(5)])
    next(first)
    next(detector.detect([grey(0)] * 5))
    with pytest.raises(RuntimeError, match="one video at a time"):
        next(first)


def test_no_weights_and_no_frames() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty"):
        VideoDetector(make_cfg())
    with pytest.raises(DataError, match="no frames were given"):
        run(make_cfg(), [])
    assert run(make_cfg(), iter([]))[1] == []


@pytest.fixture(scope="module")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tiny_videos(tmp_path_factory.mktemp("tiny"), lengths=(9, 3, 1))


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sampling=st.sampled_from(["adaptive", "fixed", "causal"]),
    half=st.integers(1, 4),
    stride=st.integers(1, 4),
    batch=st.integers(1, 3),
    backend=st.sampled_from(["pillow", "opencv"]),
)
def test_clips_are_those_of_the_evaluation(
    tiny_dataset: Any, sampling: str, half: int, stride: int, batch: int, backend: str
) -> None:
    cfg = make_cfg(sampling, 2 * half, stride)
    cfg.merge_from_list(tiny_dataset.options)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RESIZE_BACKEND = 40, backend
    cfg.TEST.KEY_FRAMES_PER_BATCH = batch
    cfg.DATALOADER.NUM_WORKERS = 0
    register_datasets_from_config(cfg)
    expected = list(build_vid_test_loader(cfg, "tiny"))
    detector = VideoDetector(cfg, NotingModel())
    for folder in sorted(tiny_dataset.image_root.iterdir()):
        list(detector.detect(folder))
    batches = detector.model.batches
    assert [len(b) for b in batches] == [len(b) for b in expected]
    same = ("height", "width", "frame_id", "reference_frame_ids", "kept_frame_ids")
    for ours, theirs in zip(detector.model.clips, [c for b in expected for c in b], strict=True):
        assert [ours[key] for key in same] == [theirs[key] for key in same]
        assert ours["images"].keys() == theirs["images"].keys()
        for frame_id, image in theirs["images"].items():
            assert torch.equal(ours["images"][frame_id], image)


def test_class_names(tiny_dataset: Any) -> None:
    def names(given: list[str] | None = None) -> list[str]:
        return VideoDetector(cfg, NotingModel(), given).class_names

    cfg = make_cfg()
    cfg.merge_from_list(tiny_dataset.options)
    assert names() == list(CLASSES)
    assert names(["a", "b", "c"]) == ["a", "b", "c"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    assert names() == ["class 0", "class 1"]
    cfg.DATASETS.VID, cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = [], ("never_heard_of",), ()
    assert names() == ["class 0", "class 1"]
    assert "never_heard_of" not in MetadataCatalog.list()
    cfg.DATASETS.VID = [["gone", "gone.json", "frames"]]
    cfg.DATASETS.TEST = ("gone",)
    assert names() == ["class 0", "class 1"]
