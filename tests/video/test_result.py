"""The result object, and asking for it from a program."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from numbered_frames import grey
from package_threads import package_threads
from stub_detector import NotingModel, make_cfg

from clab_d2.errors import ConfigError
from clab_d2.video import FrameResult, VideoDetector


def make_result(track_ids: list[int] | None = None) -> FrameResult:
    found = Instances(
        (48, 64),
        pred_boxes=Boxes(torch.tensor([[4.0, 30, 20, 46], [40.0, 5, 60, 21.5]])),
        scores=torch.tensor([0.9, 0.4]),
        pred_classes=torch.tensor([1, 0]),
    )
    if track_ids is not None:
        found.track_ids = torch.tensor(track_ids)
    return FrameResult(np.full((48, 64, 3), 90, np.uint8), 7, 0.28, found, ["cat", "dog"], "clip")


def test_as_supervision_detections() -> None:
    result = make_result([3, -1])
    found = result.to_supervision()
    assert found.xyxy.tolist() == [[4, 30, 20, 46], [40, 5, 60, 21.5]]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.4])
    assert found.class_id.tolist() == [1, 0]
    assert found.tracker_id.tolist() == [3, -1]
    assert found["class_name"].tolist() == ["dog", "cat"]
    found.xyxy[:] = 0  # a copy
    assert result.instances.pred_boxes.tensor[0, 1] == 30
    assert make_result().to_supervision().tracker_id is None
    assert len(make_result().above(0.95).to_supervision()) == 0


def test_tracks_and_thresholds() -> None:
    assert make_result().track_ids is None
    result = make_result([3, -1])
    assert result.track_ids == [3, None]
    above = result.above(0.5)
    assert above.track_ids == [3] and (above.index, above.timestamp) == (7, 0.28)
    assert above.image is result.image


def test_unpacks_as_it_did_before() -> None:
    result = make_result()
    frame, instances = result
    assert frame is result.image and instances is result.instances


def test_drawing_leaves_the_frame_as_it_is() -> None:
    result = make_result()
    before = result.image.copy()
    drawn = result.draw(score_threshold=0.5, scale=2)
    assert drawn.shape == (96, 128, 3)
    assert np.array_equal(result.image, before)
    changed = (drawn != 90).any(axis=2)
    assert changed[60:92, 8:40].any() and not changed[12:42, 84:118].any()


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r'pip install "clab_d2\[video\]"'):
        make_result().to_supervision()


def test_the_package_gives_its_detector_only_when_asked() -> None:
    code = """if True:
        import sys, clab_d2
        assert "clab_d2.video" not in sys.modules
        from clab_d2 import FrameResult, VideoDetector
        assert VideoDetector is sys.modules["clab_d2.video.detector"].VideoDetector
        assert FrameResult is sys.modules["clab_d2.video.result"].FrameResult
        assert "supervision" not in sys.modules
        try:
            clab_d2.VideoDetectors
        except AttributeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "module 'clab_d2' has no attribute 'VideoDetectors'\n", done.stderr


def test_modes_and_a_wrong_one() -> None:
    references = {
        "offline": [0, 4, 9],  # over all of the video
        "windowed": [4, 6],
        "online": [3, 4],
    }
    for mode, expected in references.items():
        cfg = make_cfg("adaptive", 3 if mode == "offline" else 2)
        detector = VideoDetector(cfg, NotingModel())
        list(detector.detect([grey(n) for n in range(10)], mode))
        used = detector.model.clips[5]["reference_frame_ids"]
        assert sorted(set(used) - {5}) == expected
    with pytest.raises(ConfigError, match="choose offline, windowed or online"):
        VideoDetector(make_cfg(), NotingModel()).detect([grey(0)], "live")


def test_async_for_leaves_the_loop_free_and_ends_its_thread() -> None:
    async def work() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        indices = []
        detector = VideoDetector(make_cfg(), NotingModel())
        async for result in detector.detect_async([grey(n) for n in range(9)]):
            indices.append(result.index)
        ticking.cancel()
        return indices, ticks

    indices, ticks = asyncio.run(work())
    assert indices == list(range(9)) and ticks > 0
    assert not package_threads()


def test_async_for_left_early_or_cancelled_ends_its_thread() -> None:
    async def consume(results: list[int], stop_at: int | None) -> None:
        detector = VideoDetector(make_cfg(), NotingModel())
        stream = detector.detect_async(grey(n % 200) for n in range(10**9))
        async for result in stream:
            results.append(result.index)
            if result.index == stop_at:
                await stream.aclose()
                return

    async def cancel() -> list[int]:
        results: list[int] = []
        task = asyncio.create_task(consume(results, None))
        while len(results) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return results

    results: list[int] = []
    asyncio.run(consume(results, 4))
    assert results == [0, 1, 2, 3, 4]
    assert len(asyncio.run(cancel())) >= 3
    assert not package_threads()
