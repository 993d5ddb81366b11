"""What a detection is said to take from other frames makes up the detector's own result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from encoded_videos import moving_pictures

from clab_d2.engine.launch import load_config
from clab_d2.errors import ConfigError, DataError
from clab_d2.inspection.aggregation_trace import AggregationTrace, Stage
from clab_d2.inspection.attention import KeyFrameAttention
from clab_d2.layers.rows import map_rows
from clab_d2.modeling.temporal_rcnn import TemporalRCNN
from clab_d2.video import SequenceSource, VideoDetector

CONFIGS = ("clab_quick", "clab_fpn_quick", "clab_cascade_quick")


def config(repo_root: Path, name: str, *options: str) -> CfgNode:
    path = repo_root / "configs" / "quick_schedules" / f"{name}.yaml"
    options = ("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", *options)
    return load_config(str(path), list(options), needs_datasets=False)


def build(cfg: CfgNode) -> TemporalRCNN:
    torch.manual_seed(0)
    return build_model(cfg).eval()


def video(length: int = 7) -> SequenceSource:
    return SequenceSource(moving_pictures(length, 64, 96))


@pytest.mark.parametrize("name", CONFIGS)
def test_detections_are_those_of_the_whole_video(repo_root: Path, name: str) -> None:
    cfg = config(repo_root, name)
    model = build(cfg)
    expected = list(VideoDetector(cfg, model, ["a"] * 30).detect(video()))[4]
    found = KeyFrameAttention(cfg, model, video(), 4).instances
    # A result of VideoDetector.detect begins with the frame, then the instances.
    instances = getattr(expected, "instances", None)
    instances = expected[1] if instances is None else instances
    assert len(found) == len(instances) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, instances.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, instances.scores)


def traced(model: TemporalRCNN) -> list[Stage]:
    """The stages of a key frame with three references, of which one counts twice."""
    from clab_d2.modeling.reference_memory import References

    pictures = [torch.from_numpy(p.transpose(2, 0, 1).copy()) for p in moving_pictures(3, 64, 96)]
    with torch.no_grad():
        frames = model.extract(pictures)
        with AggregationTrace(model) as trace:
            model.detect(frames[0], References(frames, [1, 2, 1]))
    return trace.stages


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_make_the_aggregations_results(repo_root: Path, name: str) -> None:
    model = build(config(repo_root, name))
    stages = traced(model)
    assert len(stages) == (3 if "cascade" in name else 1)
    for stage in stages:
        assert stage.logits is not None and len(stage.logits) == len(stage.boxes)
        assert stage.box_calls and stage.roi_calls
        for call in stage.box_calls:
            weights = call.part.attention_weights(call.features, call.references, call.counts)
            torch.testing.assert_close(weights.sum(dim=2), torch.ones(weights.shape[:2]))
            attended = (weights @ call.references[1]).transpose(0, 1).flatten(1)
            torch.testing.assert_close(
                call.features + call.part.output(attended), call.output, rtol=1e-4, atol=1e-5
            )
        for roi_call in stage.roi_calls:
            part, given = roi_call.part, roi_call.arguments
            pooled = given["roi_features"]
            rois, channels, size, _ = pooled.shape
            bins = pooled.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()
            maps = [map_rows(reference) for reference in given["references"]]
            found = part.search(
                bins, given["boxes"], given["feature"], maps,
                scale=given["scale"], sampling_ratio=given["sampling_ratio"],
            )  # fmt: skip
            gathered = part.gather(bins, maps, found).view(-1, rois, size, size, channels)
            frames = torch.cat([pooled[None], gathered.permute(0, 1, 4, 2, 3)])
            weights = part.frame_weights(frames, given["counts"])
            heads = weights.shape[2]
            by_head = frames.view(len(frames), rois, heads, -1, size, size)
            result = (by_head * weights[:, :, :, None]).sum(dim=0).flatten(1, 2)
            torch.testing.assert_close(result, roi_call.output, rtol=1e-4, atol=1e-5)


def test_the_mean_over_frames_has_equal_weights(repo_root: Path) -> None:
    model = build(config(repo_root, "clab_quick", "MODEL.TEMPORAL_ROI_ALIGN.NUM_HEADS", "0"))
    (stage,) = traced(model)
    (call,) = stage.roi_calls
    frames = torch.zeros(4, 2, 8, 3, 3)
    weights = call.part.frame_weights(frames, call.arguments["counts"])
    assert weights.shape == (4, 2, 1, 3, 3)
    torch.testing.assert_close(weights[:, 0, 0, 0, 0], torch.tensor([1.0, 1.0, 2.0, 1.0]) / 5)


def test_a_detector_is_left_as_it_was(repo_root: Path) -> None:
    model = build(config(repo_root, "clab_quick"))
    with pytest.raises(RuntimeError), AggregationTrace(model):
        assert any(module._forward_hooks for module in model.modules())
        raise RuntimeError
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", CONFIGS)
def test_shares_sum_to_one_and_lie_in_the_frames(repo_root: Path, name: str) -> None:
    cfg = config(repo_root, name, "INPUT.MIN_SIZE_TEST", "128", "INPUT.MAX_SIZE_TEST", "192")
    frame = KeyFrameAttention(cfg, build(cfg), video(), 4)
    attention = frame.of(0)
    assert set(frame.references) == set(attention.positions) == set(attention.proposals[0])
    for layer in attention.proposals:
        assert sum(p.weights.sum() for p in layer.values()) == pytest.approx(1, abs=1e-4)
        for attended in layer.values():
            assert attended.boxes.shape == (len(attended.weights), 4)
            # Frames of 64x96 go through the model at twice their size.
            assert attended.boxes[:, 2].max() <= 96.01 and attended.boxes[:, 3].max() <= 64.01
            assert attended.boxes[:, 2].max() > 60
    of_bins = sum(taken.weights.sum(axis=1) for taken in attention.positions.values())
    np.testing.assert_allclose(of_bins + attention.own_weights, 1, atol=1e-4)
    for taken in attention.positions.values():
        assert (taken.points > 0).all() and (taken.points < (96, 64)).all()
        assert np.abs(taken.cosines).max() < 1.001


def test_frames_that_are_alike_give_the_same_positions(repo_root: Path) -> None:
    cfg = config(repo_root, "clab_quick")
    still = SequenceSource([moving_pictures(1, 64, 96)[0]] * 5)
    frame = KeyFrameAttention(cfg, build(cfg), still, 3)
    attention = frame.of(0)
    first, *others = attention.positions.values()
    assert others
    for other in others:
        np.testing.assert_allclose(other.cosines, first.cosines, atol=1e-4)
    counts = np.array(list(frame.references.values()))
    assert counts.max() > 1  # the key frame is among those spread over the video
    for layer in attention.proposals:
        sums = np.array([proposals.weights.sum() for proposals in layer.values()])
        np.testing.assert_allclose(sums, counts / counts.sum(), atol=1e-4)


def test_mistakes_are_told(repo_root: Path) -> None:
    cfg = config(repo_root, "clab_quick")
    model = build(cfg)
    with pytest.raises(DataError, match="no frame 7; the last of its 7 frames is 6"):
        KeyFrameAttention(cfg, model, video(), 7)
    single = config(repo_root, "faster_rcnn_quick")
    with pytest.raises(ConfigError, match="takes nothing from other frames"):
        KeyFrameAttention(single, build(single), video(), 0)
