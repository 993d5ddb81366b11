"""Tracking and post-processing of what a VideoDetector finds."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from numbered_frames import grey
from stub_detector import NotingModel, make_cfg

from clab_d2.errors import ConfigError
from clab_d2.video import VideoDetector

SEQ_NMS = {"TEST.POSTPROCESS.NAME": "seq_nms"}
FRAMES = [grey(n) for n in range(6)]


class DippingModel(NotingModel):
    """Scores of 0.9, but 0.3 in every third frame; nothing in a frame without a picture."""

    def forward(self, clips: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        outputs = super().forward(clips)
        for clip, output in zip(clips, outputs, strict=True):
            found = output["instances"]
            found.scores = torch.full((len(found),), 0.3 if clip["frame_id"] % 3 == 2 else 0.9)
            found.pred_classes = torch.zeros(len(found), dtype=torch.int64)
        return outputs


def scores(results: list[Any]) -> list[float]:
    return [result.instances.scores.item() for result in results]


def test_tracks_are_those_of_the_video() -> None:
    detector = VideoDetector(make_cfg(), DippingModel())
    for _ in range(2):  # a video begins with new tracks
        ids = [r.instances.track_ids.tolist() for r in detector.detect(FRAMES, track=True)]
        assert ids == [[-1], *[[1]] * 5]
    by_name = [r.instances.track_ids.tolist() for r in detector.detect(FRAMES, track="sort")]
    assert by_name == [[-1], [-1], *[[1]] * 4]
    assert not any(r.instances.has("track_ids") for r in detector.detect(FRAMES))


def test_tracks_of_a_stream_come_frame_by_frame() -> None:
    results = VideoDetector(make_cfg(), DippingModel()).detect(iter(FRAMES), track=True)
    assert next(results).track_ids == [None]
    assert next(results).track_ids == [1]
    results.close()


def test_tracks_for_async_for() -> None:
    async def collect() -> list[Any]:
        detector = VideoDetector(make_cfg(), DippingModel())
        return [r.track_ids async for r in detector.detect_async(FRAMES, track="bytetrack")]

    assert asyncio.run(collect())[-1] == [1]


def test_a_wrong_method_is_told_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="tracker 'best': choose one of bytetrack"):
        VideoDetector(make_cfg(), NotingModel()).detect("nowhere.mp4", track="best")


def test_post_processed_frames_are_those_that_were_read() -> None:
    model = DippingModel()
    results = list(VideoDetector(make_cfg("fixed", 2, **SEQ_NMS), model).detect(FRAMES))
    assert [int(result.image[0, 0, 0]) for result in results] == list(range(6))
    assert [result.index for result in results] == list(range(6))
    assert scores(results) == pytest.approx([0.7] * 6)
    assert len(model.clips) == 6
    plain = list(VideoDetector(make_cfg("fixed", 2), DippingModel()).detect(FRAMES))
    assert scores(plain) == pytest.approx([0.9, 0.9, 0.3] * 2)
    for ours, theirs in zip(results, plain, strict=True):
        assert torch.equal(ours.instances.pred_boxes.tensor, theirs.instances.pred_boxes.tensor)
        assert np.array_equal(ours.image, theirs.image)


@pytest.mark.parametrize("source", ["online", "stream"])
def test_what_has_only_its_past_is_not_post_processed(source: str) -> None:
    detector = VideoDetector(make_cfg("fixed", 2, **SEQ_NMS), DippingModel())
    if source == "online":
        results = list(detector.detect(FRAMES, "online"))
    else:
        results = list(detector.detect(iter(FRAMES)))
    assert scores(results) == pytest.approx([0.9, 0.9, 0.3] * 2)


def test_post_processed_and_tracked() -> None:
    cfg = make_cfg("fixed", 2, **SEQ_NMS, **{"TEST.POSTPROCESS.RESCORING": "max"})
    results = list(VideoDetector(cfg, DippingModel()).detect(FRAMES, track=True))
    assert scores(results) == pytest.approx([0.9] * 6)
    assert results[-1].track_ids == [1]
