"""What every detector keeps to, whatever its parts."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from made_clips import image, losses_of, test_clips, training_clip
from registered import without_gradient

from clab_d2 import get_clab_cfg
from clab_d2.modeling import TemporalDetector, prepare_for_inference


def build(cfg: CfgNode) -> TemporalDetector:
    torch.manual_seed(0)
    return build_model(cfg)


def assert_same_detections(left: dict[str, Instances], right: dict[str, Instances]) -> None:
    """Within what another order of sums makes, at boxes of some hundred pixels."""
    ours, theirs = left["instances"], right["instances"]
    assert len(ours) == len(theirs) > 0
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
    boxes = (ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    torch.testing.assert_close(*boxes, rtol=1e-4, atol=1e-3)
    assert ours.pred_classes.tolist() == theirs.pred_classes.tolist()


def check_gradients(cfg: CfgNode) -> None:
    """All losses are finite, and every parameter that is trained has a gradient: with clips of
    two sizes, with clips of one still, and with a clip that has no object."""
    model = build(cfg).train()
    still = {**training_clip(3), "reference_frame_ids": [5, 5]}
    still["images"] = {5: still["images"][5]}
    empty = training_clip(4)
    empty["instances"] = {5: empty["instances"][5][:0]}
    for clips in ([training_clip(1), training_clip(2, (48, 80))], [still], [empty]):
        losses = losses_of(model, clips)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        assert without_gradient(model) == []
        model.zero_grad(set_to_none=True)


def check_batch_equals_single_clips(cfg: CfgNode) -> None:
    """Several key frames of a video together, and videos one after the other."""
    model = build(cfg).eval()
    first, second = test_clips(1, 4), test_clips(2, 3, size=(48, 80))
    single = [model([clip])[0] for clip in first + second]
    model.frames_per_batch = 3
    batched = model(first[:3]) + model(first[3:] + second)
    for left, right in zip(single, batched, strict=True):
        assert_same_detections(left, right)


def check_memory_equals_recomputing(cfg: CfgNode) -> None:
    """Also where an image size changes midway, so that maps of references differ in size; and
    nothing is kept that no later key frame uses."""
    model = build(cfg).eval()
    clips = test_clips(1, 5)
    sizes = {frame: (64, 96) if frame != 2 else (48, 112) for frame in range(5)}
    pictures = {frame: image(100 + frame, size) for frame, size in sizes.items()}
    for clip in clips:
        clip["images"] = {frame: pictures[frame] for frame in clip["images"]}
    remembered = []
    for clip in clips:
        remembered += model([clip])
        assert len(model.memory) == len(clip["kept_frame_ids"])
        assert all(frame in model.memory for frame in clip["kept_frame_ids"])
    for clip, result in zip(clips, remembered, strict=True):
        model.memory.clear()
        needed = {*clip["reference_frame_ids"], clip["frame_id"]}
        anew = {**clip, "images": {frame: pictures[frame] for frame in needed}}
        assert_same_detections(model([anew])[0], result)


def check_yaml_round_trip(cfg: CfgNode, folder: Path) -> None:
    """The config as a training writes it builds the same detector."""
    path = folder / "config.yaml"
    path.write_text(cfg.dump())
    again = get_clab_cfg()
    again.merge_from_file(str(path))
    assert again.dump() == cfg.dump()
    model, copy = build(cfg).eval(), build(again).eval()
    for clip in test_clips(1, 2):
        assert_same_detections(model([clip])[0], copy([clip])[0])


def check_half_precision(cfg: CfgNode) -> None:
    """In bfloat16 it trains, and detects with finite scores: nothing mixes types."""
    cfg = cfg.clone()
    cfg.TEST.PRECISION = "bf16"
    model = build(cfg).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, [training_clip(1), training_clip(2)])
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    model.eval()
    for clip in test_clips(1, 3):
        instances = model([clip])[0]["instances"]
        assert len(instances) > 0
        assert torch.isfinite(instances.scores).all()


def check_unreadable_references(cfg: CfgNode) -> None:
    """A key frame whose references are all unreadable is detected in by itself."""
    model = build(cfg).eval()
    clip = {**test_clips(1, 3)[1], "images": {0: None, 1: image(101), 2: None}}
    clip["reference_frame_ids"] = [0, 2, 2]
    alone = {**clip, "images": {1: image(101)}, "reference_frame_ids": [1]}
    result = model([clip])[0]
    model.memory.clear()
    assert_same_detections(model([alone])[0], result)


def on_a_pyramid(cfg: CfgNode) -> CfgNode:
    """The config with a feature pyramid for its backbone."""
    cfg = cfg.clone()
    cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.OUT_CHANNELS", 32),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
            *("MODEL.CONTRASTIVE.IN_FEATURE", "p4"),
        ]
    )
    return cfg


def check_optimized(cfg: CfgNode) -> None:
    """What makes it faster at test changes nothing but the last digits."""
    model = build(cfg).eval()
    fast = prepare_for_inference(build(cfg), cfg)
    for clip in test_clips(1, 3):
        left, right = model([clip])[0]["instances"], fast([clip])[0]["instances"]
        assert len(left) == len(right) > 0
        torch.testing.assert_close(left.scores, right.scores, rtol=1e-3, atol=1e-4)


def check_aggregates(cfg: CfgNode) -> None:
    """``aggregates`` tells whether another reference changes what is detected."""
    model = build(cfg).eval()
    clip = test_clips(1, 2, window=1)[0]
    scores = model([clip])[0]["instances"].scores
    other = {**clip, "images": {**clip["images"], 1: image(999)}}
    changed = model([other])[0]["instances"].scores
    equal = len(scores) == len(changed) and torch.allclose(scores, changed, atol=1e-7)
    assert equal != model.aggregates
