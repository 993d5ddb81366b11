"""One training step of the golden detector, against what the release computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from clab_d2 import get_clab_cfg
from clab_d2.checkpoint.convert import convert_file

RELATIVE_TOLERANCE = 1e-3

# Our names of the release's parameters whose gradient norms are known.
OURS = {
    "detector.backbone.layer2.0.conv1.weight": "backbone.bottom_up.res3.0.conv1.weight",
    "detector.backbone.layer3.5.conv3.weight": "backbone.bottom_up.res4.5.conv3.weight",
    "detector.backbone.layer4.2.conv3.weight": "backbone.bottom_up.res5.2.conv3.weight",
    "detector.neck.convs.0.conv.weight": "backbone.neck.weight",
    "detector.roi_head.bbox_roi_extractor.embed_network.conv.weight": (
        "roi_heads.roi_aggregation.embed.weight"
    ),
    "detector.roi_head.bbox_head.shared_fcs.0.weight": "roi_heads.box_head.fc1.weight",
    "detector.roi_head.bbox_head.aggregator.0.ref_fc.weight": (
        "roi_heads.box_head.aggregations.0.value.weight"
    ),
    "detector.roi_head.bbox_head.aggregator.2.fc_embed.weight": (
        "roi_heads.box_head.aggregations.2.query.weight"
    ),
    "detector.roi_head.bbox_head.fc_cls.weight": "roi_heads.box_predictor.cls_score.weight",
    "auxiliary.channel.0.weight": "contrastive_branch.loss.embedding.conv.weight",
    "auxiliary.proj.2.weight": "contrastive_branch.loss.embedding.projection.2.weight",
}


@pytest.fixture(scope="module")
def arrays(golden):
    return np.load(golden("tiny_clab/train_step.npz"))


@pytest.fixture(scope="module")
def step(golden, arrays, repo_root: Path, tmp_path_factory):
    """Losses, logged scalars and model after the backward pass of the golden step."""
    weights = tmp_path_factory.mktemp("weights") / "tiny.pth"
    convert_file(golden("tiny_clab/checkpoint.pth"), weights)
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(repo_root / "configs/quick_schedules/clab_tiny_golden.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    # As in the golden step: every sampler so large that it draws all, the contrastive loss as is.
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 10**6
    cfg.MODEL.CONTRASTIVE.ENABLED = True
    cfg.MODEL.CONTRASTIVE.WEIGHT.START = 1.0
    cfg.MODEL.CONTRASTIVE.WEIGHT.SCHEDULE = "constant"
    model = build_model(cfg).train()
    state = torch.load(weights, weights_only=True)["model"]
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)

    def image(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).permute(2, 0, 1).contiguous()

    clips = []
    for number, (key, references) in enumerate(
        zip(arrays["key_frames"], arrays["ref_frames"], strict=True)
    ):
        height, width = key.shape[:2]
        clips.append(
            {
                "images": {1: image(key), 0: image(references[0]), 2: image(references[1])},
                "instances": {
                    1: Instances(
                        (height, width),
                        gt_boxes=Boxes(torch.from_numpy(arrays[f"gt_boxes_{number}"])),
                        gt_classes=torch.from_numpy(arrays[f"gt_classes_{number}"]),
                    )
                },
                "video_id": number,
                "frame_id": 1,
                "reference_frame_ids": [0, 2],
            }
        )
    with EventStorage() as storage:
        losses = model(clips)
        (losses["loss_cls"] + losses["loss_box_reg"] + losses["loss_contrastive"]).backward()
        logged = {name: value for name, (value, _) in storage.latest().items()}
    normalizer = cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE * len(clips)
    return {name: loss.item() for name, loss in losses.items()}, logged, model, normalizer


def test_losses(arrays, step):
    losses, _, _, normalizer = step
    expected = {
        "loss_cls": float(arrays["loss_cls"]),
        "loss_box_reg": float(arrays["loss_box_reg"]),
        "loss_contrastive": float(arrays["loss_contrastive_unweighted"]),
        "loss_rpn_cls": float(arrays["rpn_cls_loss_sum"]) / normalizer,
        "loss_rpn_loc": float(arrays["rpn_box_loss_sum"]) / normalizer,
    }
    assert losses == pytest.approx(expected, rel=RELATIVE_TOLERANCE)


def test_numbers_of_anchors_and_rois(arrays, step):
    _, logged, _, _ = step
    num_clips = len(arrays["num_rois"])
    assert logged["rpn/num_pos_anchors"] * num_clips == int(arrays["num_rpn_pos"])
    assert logged["rpn/num_neg_anchors"] * num_clips == int(arrays["num_rpn_neg"])
    rois = logged["roi_head/num_fg_samples"] + logged["roi_head/num_bg_samples"]
    assert rois == arrays["num_rois"].mean()


@pytest.mark.parametrize("theirs", OURS)
def test_gradient_norm(arrays, step, theirs):
    _, _, model, _ = step
    gradient = model.get_parameter(OURS[theirs]).grad
    expected = float(arrays[f"grad_norm/{theirs}"])
    assert gradient.norm().item() == pytest.approx(expected, rel=RELATIVE_TOLERANCE)
