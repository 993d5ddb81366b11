from __future__ import annotations

import pytest
import torch
from detectron2.utils.events import EventStorage
from made_clips import assert_same, build, image, losses_of, test_clips, training_clip

from clab_d2.errors import ConfigError, DataError

CONFIGS = [
    "faster_rcnn_quick",
    "selsa_quick",
    "temporal_roi_align_quick",
    "clab_quick",
    "clab_fpn_quick",
]


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_and_detects(config, name):
    model = build(config(name)).train()
    losses = losses_of(model, [training_clip(1), training_clip(2, (48, 80))])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "DistributedDataParallel wants a gradient for every parameter"
    model.eval()
    results = [model([clip])[0]["instances"] for clip in test_clips(0, 3)]
    assert all(result.image_size == (128, 192) for result in results)
    assert len(model.memory) <= 5


@pytest.mark.parametrize("name", ["clab_quick", "clab_fpn_quick"])
def test_mixed_precision_trains_and_detects(config, name):
    """Every product in bfloat16 that autocast allows: nothing mixes types, losses stay near."""
    model = build(config(name)).train()
    clips = [training_clip(1), training_clip(2)]
    torch.manual_seed(0)
    full = losses_of(model, clips)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses_of(model, clips)
        sum(mixed.values()).backward()
    for key, value in full.items():
        assert mixed[key].item() == pytest.approx(value.item(), rel=0.2, abs=0.02)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        for clip in test_clips(1, 2):
            assert torch.isfinite(model([clip])[0]["instances"].scores).all()


@pytest.mark.parametrize("name", ["clab_quick", "clab_fpn_quick"])
def test_a_batch_of_clips_equals_the_clips_one_by_one(config, name):
    """Also where they differ in size: no clip sees another's padding."""
    # All RoIs and anchors are drawn, so that sampling plays no part; statistics of a batch would
    # tie clips together, so they are fixed, as in the paper.
    cfg = config(
        name,
        "MODEL.BACKBONE.FIX_BN_STATISTICS", True,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**5,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**5,
    )  # fmt: skip
    model = build(cfg).train()
    clips = [training_clip(1), training_clip(2, (48, 80))]
    together = losses_of(model, clips)
    apart = [losses_of(model, [clip]) for clip in clips]
    with EventStorage() as storage:
        rois = []
        for clip in clips:
            model([clip])
            latest = storage.latest()
            rois.append(
                latest["roi_head/num_fg_samples"][0] + latest["roi_head/num_bg_samples"][0]
            )
    for key in ("loss_rpn_cls", "loss_rpn_loc"):
        torch.testing.assert_close(together[key], (apart[0][key] + apart[1][key]) / 2)
    for key in ("loss_cls", "loss_box_reg"):  # means over RoIs
        mean = (apart[0][key] * rois[0] + apart[1][key] * rois[1]) / sum(rois)
        torch.testing.assert_close(together[key], mean)


def test_detections_do_not_depend_on_the_order_of_videos_or_on_batching(config):
    model = build(config("clab_quick")).eval()
    first, second = test_clips(1, 5), test_clips(2, 4, size=(48, 80))
    forward = [model([clip])[0] for clip in first + second]
    backward = [model([clip])[0] for clip in second + first]
    for left, right in zip(forward, backward[4:] + backward[:4], strict=True):
        assert_same(left, right)
    model.frames_per_batch = 3
    batched = model(first[:3]) + model(first[3:]) + model(second)
    for left, right in zip(forward, batched, strict=True):
        assert_same(left, right)


def test_memory_gives_what_computing_all_frames_anew_gives(config):
    model = build(config("clab_quick")).eval()
    clips = test_clips(1, 6)
    remembered = [model([clip])[0] for clip in clips]
    for clip, result in zip(clips, remembered, strict=True):
        model.memory.clear()
        ids = {*clip["reference_frame_ids"], clip["frame_id"]}
        assert_same(model([{**clip, "images": {i: image(100 + i) for i in ids}}])[0], result)


def test_memory_does_not_grow_with_the_video(config):
    model = build(config("clab_quick")).eval()
    sizes = []
    for clip in test_clips(1, 30):
        model([clip])
        sizes.append(len(model.memory))
    assert max(sizes) == 4, "after a key frame, the others of its window"


def test_an_unreadable_key_frame_has_no_detections_and_no_part_in_others(config):
    model = build(config("clab_quick")).eval()
    clips = test_clips(1, 4)
    for clip in clips:
        if 2 in clip["images"]:
            clip["images"][2] = None
    results = [model([clip])[0]["instances"] for clip in clips]
    assert [len(result) > 0 for result in results] == [True, True, False, True]


def test_a_reference_that_was_never_given_is_named(config):
    model = build(config("clab_quick")).eval()
    clip = test_clips(1, 4)[3]
    with pytest.raises(DataError, match="frame 1 of video"):
        model([{**clip, "images": {3: image(3)}}])


def test_references_change_detections_only_where_the_model_aggregates(config):
    for name, aggregates in (("faster_rcnn_quick", False), ("selsa_quick", True)):
        model = build(config(name)).eval()
        clips = test_clips(1, 2, window=1)
        scores = model([clips[0]])[0]["instances"].scores
        other = {**clips[0], "images": {**clips[0]["images"], 1: image(999)}}
        changed = model([other])[0]["instances"].scores
        equal = len(scores) == len(changed) and torch.allclose(scores, changed, atol=1e-7)
        assert equal != aggregates
        assert model.aggregates == aggregates


def test_a_still_is_its_own_reference(config):
    """Both references of a still are the still: one frame computed, counted twice."""
    model = build(config("clab_quick", "MODEL.BACKBONE.FIX_BN_STATISTICS", True)).train()
    clip = training_clip(1)
    still = {**clip, "reference_frame_ids": [5, 5]}
    copies = {**clip, "images": dict.fromkeys((5, 3, 8), clip["images"][5])}
    torch.manual_seed(1)
    expected = losses_of(model, [copies, training_clip(2)])
    torch.manual_seed(1)
    actual = losses_of(model, [still, training_clip(2)])
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value)


def test_contrastive_weight_follows_the_iteration(config):
    model = build(
        config("clab_quick", "MODEL.CONTRASTIVE.WEIGHT.STEPS", 100)
    ).train()
    clips = [training_clip(1), training_clip(2)]
    losses, weights = [], []
    for iteration in (0, 50, 100, 150):
        with EventStorage(iteration) as storage:
            torch.manual_seed(0)
            losses.append(model(clips)["loss_contrastive"].item())
            weights.append(storage.latest()["contrastive/weight"][0])
    start = model.contrastive_branch.weight_start
    assert weights == pytest.approx([start, start / 2, 0, 0])
    assert losses[1] == pytest.approx(losses[0] / 2, rel=1e-4)
    assert losses[2:] == [0, 0]


def test_inference_has_nothing_of_the_branch(config):
    """Same graph and same result with and without it."""
    with_branch = build(config("clab_quick")).eval()
    without = build(config("clab_quick", "MODEL.CONTRASTIVE.ENABLED", False)).eval()
    state = with_branch.state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith("contrastive_branch")}
    without.load_state_dict(kept)
    used = []
    with_branch.contrastive_branch.register_forward_hook(lambda *_: used.append(1))
    embedding = with_branch.contrastive_branch.loss.embedding
    embedding.conv.register_forward_hook(lambda *_: used.append(1))
    for clip in test_clips(1, 2):
        assert_same(with_branch([clip])[0], without([clip])[0])
    assert not used


def test_a_tap_that_is_not_there_is_named(config):
    with pytest.raises(ConfigError, match=r"MODEL\.CONTRASTIVE\.IN_FEATURE 'p9'"):
        build(config("clab_quick", "MODEL.CONTRASTIVE.IN_FEATURE", "p9"))


@pytest.mark.parametrize("tap", ["res2", "res3", "c5"])
def test_taps_of_the_single_scale_backbone(config, tap):
    model = build(config("clab_quick", "MODEL.CONTRASTIVE.IN_FEATURE", tap)).train()
    assert losses_of(model, [training_clip(1), training_clip(2)])["loss_contrastive"] > 0


def test_a_pyramid_taps_the_network_below_it(config):
    model = build(config("clab_fpn_quick", "MODEL.CONTRASTIVE.IN_FEATURE", "res4")).train()
    assert losses_of(model, [training_clip(1), training_clip(2)])["loss_contrastive"] > 0


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_clip_is_drawn_every_so_often(config, order):
    model = build(config("clab_quick", "VIS_PERIOD", 2, "INPUT.FORMAT", order)).train()
    clip = training_clip(1)
    drawn = {}
    for iteration in (3, 4):
        with EventStorage(iteration) as storage:
            model([clip])
            drawn[iteration] = [picture for _, picture, _ in storage._vis_data]
    assert drawn[3] == []
    (picture,) = drawn[4]
    assert picture.ndim == 3 and len(picture) == 3
    # The second cell is a reference as it is: the channel order is put right.
    reference = clip["images"][3].float().mean(dim=(1, 2))
    if order == "BGR":
        reference = reference.flip(0)
    cell = torch.as_tensor(picture[:, 40:250, 372:720].copy()).float().mean(dim=(1, 2))
    torch.testing.assert_close(cell, reference, atol=6, rtol=0)
