from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from made_clips import assert_same, build, decisive, image, losses_of, test_clips, training_clip

from clab_d2.errors import ConfigError
from clab_d2.modeling.reference_memory import FrameFeatures, References

NAME = "clab_cascade_quick"
SINGLE = ("MODEL.AGGREGATION.ROI_FEATURES", "", "MODEL.AGGREGATION.BOX_FEATURES", "")
FPN = (
    "clab_fpn_quick",
    "MODEL.ROI_HEADS.NAME", "TemporalCascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
)  # fmt: skip
VARIANTS = {
    "clab": (NAME,),
    "SELSA": (NAME, "MODEL.AGGREGATION.ROI_FEATURES", ""),
    "Temporal RoI Align": (NAME, "MODEL.AGGREGATION.BOX_FEATURES", ""),
    "single frame": (NAME, *SINGLE),
    "on a pyramid": FPN,
}


def continuous(variant: str) -> tuple[str, ...]:
    """On large maps, rounding now and then decides which of two positions is the more similar."""
    return ("MODEL.AGGREGATION.ROI_FEATURES", "") if "pyramid" in variant else ()


# -------------------------------------------------------------------- against Detectron2's


@pytest.fixture
def both(config):
    """Our heads without aggregation and Detectron2's, of the same weights."""
    cfg = config(
        NAME,
        *SINGLE,
        "MODEL.ROI_BOX_HEAD.NUM_FC", 2,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    )  # fmt: skip
    ours = build(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    theirs = build_roi_heads(cfg, ours.backbone.output_shape())
    # Larger than they are drawn, so that stages move boxes and scores differ.
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if "box_predictor" in name:
                value.normal_(std=0.3 if "cls" in name else 0.1)
    assert list(ours.roi_heads.state_dict()) == list(theirs.state_dict())
    ours.roi_heads.load_state_dict(theirs.state_dict())
    return ours.roi_heads, theirs


def two_frames() -> tuple[torch.Tensor, list[Instances], list[Instances]]:
    """Maps, proposals and ground truth of two frames."""
    torch.manual_seed(0)
    proposals, targets = [], []
    for number in range(2):
        truth = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 60.0, 44.0]]) + 8 * number
        corners = torch.rand(40, 4) * torch.tensor([50.0, 30.0, 40.0, 30.0])
        boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:] + 4], dim=1)
        near = truth.repeat(6, 1) + torch.randn(12, 4) * 3
        proposals.append(
            Instances(
                (64, 96),
                proposal_boxes=Boxes(torch.cat([boxes, near])),
                objectness_logits=torch.zeros(52),
            )
        )
        targets.append(
            Instances((64, 96), gt_boxes=Boxes(truth), gt_classes=torch.tensor([number, 4]))
        )
    return torch.randn(2, 32, 4, 6), proposals, targets


def as_frames(maps: torch.Tensor) -> list[FrameFeatures]:
    return [FrameFeatures({"c5": each[None]}, (64, 96)) for each in maps]


NO_REFERENCES = [References([], []), References([], [])]


def test_without_aggregation_detections_are_those_of_detectron2(both):
    ours, theirs = (heads.eval() for heads in both)
    maps, proposals, _ = two_frames()
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96)] * 2)
    with torch.no_grad():
        expected, _ = theirs(images, {"c5": maps}, proposals)
        actual, losses = ours(as_frames(maps), proposals, NO_REFERENCES)
    assert losses == {}
    for left, right in zip(actual, expected, strict=True):
        assert len(left) == len(right) > 20
        assert len(set(right.pred_classes.tolist())) > 3
        torch.testing.assert_close(left.scores, right.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            left.pred_boxes.tensor, right.pred_boxes.tensor, atol=1e-3, rtol=0
        )
        assert torch.equal(left.pred_classes, right.pred_classes)


@pytest.mark.parametrize("objects", [2, 0])
def test_without_aggregation_losses_and_gradients_are_those_of_detectron2(both, objects):
    ours, theirs = (heads.train() for heads in both)
    maps, proposals, targets = two_frames()
    targets = [targets[0], targets[1][:objects]]
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96)] * 2)
    results = []
    for heads in (ours, theirs):
        own = maps.clone().requires_grad_()
        torch.manual_seed(3)
        with EventStorage() as storage:
            if heads is theirs:
                _, losses = heads(images, {"c5": own}, list(proposals), targets)
            else:
                _, losses = heads(as_frames(own), list(proposals), NO_REFERENCES, targets)
            scalars = {name: value for name, (value, _) in storage.latest().items()}
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in heads.named_parameters()}
        results.append((losses, scalars, {**gradients, "maps": own.grad}))
    (actual, our_scalars, our_gradients), (expected, their_scalars, their_gradients) = results
    assert set(actual) == {f"loss_{k}_stage{s}" for k in ("cls", "box_reg") for s in range(3)}
    assert our_scalars == pytest.approx(their_scalars)
    assert their_scalars["stage2/roi_head/num_fg_samples"] > 0
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(our_gradients, their_gradients, atol=1e-5, rtol=1e-4)


# -------------------------------------------------------------------- over frames


@pytest.mark.parametrize("variant", VARIANTS)
def test_trains_with_a_gradient_for_every_parameter_and_detects(config, variant):
    model = build(config(*VARIANTS[variant])).train()
    losses = losses_of(model, [training_clip(1), training_clip(2, (48, 80))])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert {f"loss_cls_stage{stage}" for stage in range(3)} < set(losses)
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    model.eval()
    for clip in test_clips(0, 3):
        assert model([clip])[0]["instances"].image_size == (128, 192)
    assert model.roi_heads.needs_references == (variant != "single frame")


@pytest.mark.parametrize("variant", ["clab", "on a pyramid"])
def test_a_batch_of_clips_equals_the_clips_one_by_one(config, variant):
    cfg = config(
        *VARIANTS[variant],
        "MODEL.BACKBONE.FIX_BN_STATISTICS", True,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**5,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**5,
    )  # fmt: skip
    model = build(cfg).train()
    clips = [training_clip(1), training_clip(2, (48, 80))]
    together = losses_of(model, clips)
    apart, rois = [], []
    for clip in clips:
        with EventStorage() as storage:
            apart.append(model([clip]))
            latest = storage.latest()
        rois.append(
            [
                sum(latest[f"{scope}roi_head/num_{kind}_samples"][0] for kind in ("fg", "bg"))
                for scope in ("", "stage1/", "stage2/")
            ]
        )
    for stage in range(3):
        for key in (f"loss_cls_stage{stage}", f"loss_box_reg_stage{stage}"):  # means over RoIs
            mean = sum(losses[key] * r[stage] for losses, r in zip(apart, rois, strict=True))
            torch.testing.assert_close(together[key], mean / sum(r[stage] for r in rois))


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_and_batches_give_what_computing_all_frames_anew_gives(config, variant):
    model = decisive(build(config(*VARIANTS[variant], *continuous(variant)))).eval()
    clips = test_clips(1, 5)
    remembered = [model([clip])[0] for clip in clips]
    model.frames_per_batch = 3
    for left, right in zip(remembered, model(clips[:3]) + model(clips[3:]), strict=True):
        assert_same(left, right)
    for clip, result in zip(clips, remembered, strict=True):
        model.memory.clear()
        ids = {*clip["reference_frame_ids"], clip["frame_id"]}
        assert_same(model([{**clip, "images": {i: image(100 + i) for i in ids}}])[0], result)


def test_each_stage_encodes_a_reference_once_and_by_its_own_head(config):
    model = build(config(NAME)).eval()
    frame, other = model.extract([image(1), image(2)])
    heads = model.roi_heads
    assert len(frame.encoded) == len(heads.box_heads) == 3
    with torch.no_grad():
        pooled = heads.pool(frame, frame.proposals.proposal_boxes)
        for head, encoded in zip(heads.box_heads, frame.encoded, strict=True):
            for ours, expected in zip(encoded, head.encode_references(pooled), strict=True):
                torch.testing.assert_close(tuple(ours), tuple(expected))
    calls = []
    for head in heads.box_heads:
        head.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[1]))
    with torch.no_grad():
        references = References([frame, other], [2, 1], model.memory.references([]).cat)
        heads([frame], [frame.proposals], [references])
    keys = [layers[0][0] for layers in calls]
    assert len(keys) == 3
    assert not torch.allclose(keys[0], keys[1]) and not torch.allclose(keys[1], keys[2])


def test_every_stage_attends_to_references(config):
    """Also with nothing but the last stage's aggregation that does anything."""
    model = build(config(NAME)).eval()
    heads = model.roi_heads
    frame, other, third = model.extract([image(1), image(2), image(3)])
    for stage in range(3):
        with torch.no_grad():
            logits = [
                heads.predict_stage(stage, frame, frame.proposals, References([reference], [1]))[0]
                for reference in (other, third)
            ]
        assert not torch.allclose(*logits)


def test_gradients_of_what_stages_share_are_a_third(config):
    """With the same predictor and head in each stage, maps get a single head's gradient."""
    model = build(config(NAME)).train()
    heads = model.roi_heads
    pooled = torch.randn(4, 32, 7, 7, requires_grad=True)
    heads._share_gradient(pooled * 1).sum().backward()
    torch.testing.assert_close(pooled.grad, torch.full_like(pooled, 1 / 3))
    frames = model.extract([image(1)])
    feature = frames[0].features["c5"].requires_grad_()
    (encoded,) = heads.encode_references(frames)
    (gradient,) = torch.autograd.grad(encoded[0][0][0].sum(), feature)
    pooled, _ = heads.pool_proposals(frames)
    head = heads.box_heads[0]
    (whole,) = torch.autograd.grad(head.encode_references(pooled)[0][0].sum(), feature)
    torch.testing.assert_close(3 * gradient, whole)


def test_mixed_precision(config):
    model = build(config(NAME)).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, [training_clip(1), training_clip(2)])
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    model.eval()
    model.precision = "bf16"
    for clip in test_clips(1, 2):
        assert torch.isfinite(model([clip])[0]["instances"].scores).all()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False), "CLS_AGNOSTIC_BBOX_REG is False"),
        (("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6)), "IOUS has 2 entries .* 3"),
        (("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", ("(1, 2)",) * 3), "four numbers"),
        (("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.4]), "IOU_THRESHOLDS is"),
    ],
)
def test_impossible_cascades_are_named(config, override, told):
    with pytest.raises(ConfigError, match=told):
        build(config(NAME, *override))


def test_stages_have_one_of_each(config):
    heads = build(config(NAME)).roi_heads
    with pytest.raises(ValueError, match="3 box heads, 3 box predictors and 2 matchers"):
        type(heads)(
            box_heads=heads.box_heads,
            box_predictors=list(heads.box_predictor),
            proposal_matchers=heads.proposal_matchers[:2],
        )
