from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from made_clips import assert_same, build, image, losses_of, test_clips, training_clip

from clab_d2.modeling import CONTRASTIVE_LOSS_REGISTRY, TemporalDense
from clab_d2.modeling.frame_groups import same_size
from clab_d2.modeling.reference_memory import FrameFeatures

SINGLE = ("MODEL.AGGREGATION.PREDICTIONS", "")


@pytest.fixture(params=["FCOS", "RetinaNet"])
def cfg(config, request) -> CfgNode:
    return config(
        "dense_quick", "MODEL.DENSE.HEAD", request.param, "MODEL.CONTRASTIVE.ENABLED", False
    )


def extracted(model: TemporalDense, seed: int = 1) -> FrameFeatures:
    with torch.no_grad():
        return model.eval().extract([image(seed)])[0]


def test_started_as_the_identity_it_is_the_single_frame_detector(cfg):
    cfg.MODEL.AGGREGATION.START_AS_IDENTITY = True
    temporal = build(cfg).eval()
    cfg.MODEL.AGGREGATION.PREDICTIONS = ""
    single = build(cfg).eval()
    assert temporal.aggregates and not single.needs_references
    weights = single.load_state_dict(temporal.state_dict(), strict=False)
    assert not weights.missing_keys
    for clip in test_clips(1, 3):
        alone = {**clip, "images": {clip["frame_id"]: image(100 + clip["frame_id"])}}
        assert_same(temporal([clip])[0], single([{**alone, "reference_frame_ids": []}])[0])


def test_boxes_are_those_of_the_selected_predictions(cfg):
    cfg.merge_from_list(["MODEL.RETINANET.NMS_THRESH_TEST", 1.0])
    model = build(cfg)
    frame = extracted(model)
    memory_frame = extracted(model, seed=2)
    model.memory.put(0, memory_frame)
    found = model.detect(frame, model.memory.references([0]))
    selected = {tuple(box) for box in frame.proposals.pred_boxes.tensor.tolist()}
    assert len(found) > 0
    assert {tuple(box) for box in found.pred_boxes.tensor.tolist()} <= selected


def test_what_lies_in_the_boxes_counts_where_it_is_asked_for(cfg):
    """It is part of what the aggregation takes, of key frames and references alike, and learns."""
    cfg.MODEL.DENSE.POOLER_RESOLUTION = 3
    model = build(cfg)
    with_boxes = extracted(model).proposals.cls_features
    bias = model.box_features.project.bias
    with torch.no_grad():
        model.box_features.project.weight.zero_()
        bias.fill_(1.0)
    with_ones = extracted(model).proposals.cls_features.mean()
    torch.testing.assert_close(with_ones - 1, plain_mean(model))
    assert not torch.allclose(with_boxes.mean(), plain_mean(model))
    losses_of(model.train(), [training_clip(1)])["loss_rescoring"].backward()
    assert bias.grad.any()
    cfg.merge_from_list(SINGLE)
    assert build(cfg).box_features is None, "nothing would take it"


def plain_mean(model: TemporalDense) -> torch.Tensor:
    """The mean of the selected predictions' tower features alone."""
    own, model.box_features = model.box_features, None
    mean = extracted(model).proposals.cls_features.mean()
    model.box_features = own
    return mean


def test_no_maps_are_kept_of_a_frame(cfg):
    """What a frame leaves behind is a few predictions, whatever the image's size."""
    frame = extracted(build(cfg))
    assert frame.features == {}
    limit = cfg.MODEL.DENSE.SELECT.NUM
    assert 0 < len(frame.proposals) <= limit
    assert all(tensor.shape[-2] == len(frame.proposals) for tensor in frame.encoded)


def test_training_lowers_the_loss_of_new_scores(cfg):
    torch.manual_seed(0)
    model = build(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    history = []
    for _ in range(25):
        model.dense_head.loss_normalizer.fill_(10.0)  # else it moves, and the loss with it
        optimizer.zero_grad()
        losses = losses_of(model, [training_clip(1), training_clip(2)])
        sum(losses.values()).backward()
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert history[-1] < 0.8 * history[0]
    assert losses["loss_rescoring"] > 0


def test_a_box_that_fits_an_object_is_to_get_its_class(cfg):
    """The loss is near zero where new scores say so, and large where they say the opposite."""

    class Told(torch.nn.Module):
        needs_references = False

        def forward(self, cls, box, logits, references, counts):
            return self.logits

    model = build(cfg)
    model.prediction_aggregation = Told()
    target = training_clip(0)["instances"][5]
    number = len(target)
    selected = Instances(
        target.image_size,
        pred_boxes=target.gt_boxes,
        score_logits=torch.zeros(number, 30),
        cls_features=torch.zeros(number, 4),
        box_features=torch.zeros(number, 4),
    )
    right = torch.full((number, 30), -20.0)
    right[torch.arange(number), target.gt_classes] = 20.0
    values = []
    for logits in (right, -right):
        model.prediction_aggregation.logits = logits
        # By the method that training goes through, and nothing else of the detector
        values.append(model.rescoring_loss([selected], [None], [target]).item())
    assert values[0] < 1e-6 < 1 < values[1]


def test_single_frame_training_has_no_rescoring(cfg):
    cfg.merge_from_list(SINGLE)
    assert "loss_rescoring" not in losses_of(build(cfg).train(), [training_clip(1)])


@pytest.mark.parametrize("loss", CONTRASTIVE_LOSS_REGISTRY.names())
def test_every_contrastive_loss_works_on_it(config, loss):
    model = build(config("dense_quick", "MODEL.CONTRASTIVE.LOSS", loss)).train()
    losses = losses_of(model, [training_clip(1), training_clip(2, (48, 80))])
    losses["loss_contrastive"].backward()
    assert torch.isfinite(losses["loss_contrastive"])
    reached = [p for p in model.contrastive_branch.parameters() if p.grad is not None]
    assert reached


def test_a_weighted_sum_over_frames_of_several_sizes(cfg):
    cfg.merge_from_list(["MODEL.BACKBONE.FIX_BN_STATISTICS", True])
    model = build(cfg).train()
    clips = [training_clip(1), training_clip(2, (48, 80))]

    def losses(chosen):
        model.dense_head.loss_normalizer.fill_(20.0)
        torch.manual_seed(0)
        return losses_of(model, chosen)

    together, apart = losses(clips), [losses([clip]) for clip in clips]
    mean = (apart[0]["loss_rescoring"] + apart[1]["loss_rescoring"]) / 2
    torch.testing.assert_close(together["loss_rescoring"], mean)


def test_frames_of_one_size_together():
    frames = [
        FrameFeatures({"c5": torch.zeros(1, 2, height, 3)}, (8, 8)) for height in (4, 5, 4, 5, 6)
    ]
    numbers = {id(frame): number for number, frame in enumerate(frames)}
    groups = [[numbers[id(frame)] for frame in group] for group in same_size(frames)]
    assert groups == [[0, 2], [1, 3], [4]]
