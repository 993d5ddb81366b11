"""Every config in configs/ loads and is free of contradictions; the paper's are the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_backbone, build_model

from clab_d2 import get_clab_cfg
from clab_d2.engine import Trainer, validate_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
PAPER = [name for name in ALL if name.startswith("ImageNetVID/") and name.endswith("_DC5.yaml")]

#: What the paper, its release and MMTracking's zoo have for ImageNet VID.
RECIPE = {
    # data
    "DATASETS.TRAIN": ("imagenet_vid_train", "imagenet_det_30plus1cls"),
    "DATASETS.TEST": ("imagenet_vid_val",),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "INPUT.FORMAT": "RGB",
    "INPUT.RESIZE_BACKEND": "opencv",
    "INPUT.MIN_SIZE_TRAIN": (600,),
    "INPUT.MAX_SIZE_TRAIN": 1000,
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.REFERENCES.NUM": 2,
    "INPUT.REFERENCES.RANGE": 9,
    "TEST.REFERENCES.SAMPLING": "adaptive",
    "TEST.REFERENCES.NUM": 14,
    # backbone and neck
    "MODEL.META_ARCHITECTURE": "TemporalRCNN",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.NAME": "build_resnet_dc5_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.BACKBONE.FIX_BN_STATISTICS": True,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.NECK.IN_FEATURE": "res5",
    "MODEL.NECK.OUT_CHANNELS": 512,
    # RPN
    "MODEL.ANCHOR_GENERATOR.SIZES": [[64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.PROPOSAL_GENERATOR.NAME": "MMDetectionRPN",
    "MODEL.RPN.IN_FEATURES": ["c5"],
    "MODEL.RPN.CONV_DIMS": [512],
    "MODEL.RPN.BOUNDARY_THRESH": 0,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.IOU_LABELS": [0, -1, 1],
    "MODEL.RPN.MIN_LOW_QUALITY_IOU": 0.3,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.SMOOTH_L1_BETA": 1 / 9,
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RPN.LOSS_WEIGHT": 1.0,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 6000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 600,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    # RoIs
    "MODEL.ROI_HEADS.NAME": "TemporalROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["c5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 30,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "MODEL.ROI_BOX_HEAD.NAME": "TemporalBoxHead",
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (5.0, 5.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    # schedule: 111,472 key frames, 16 a step: 6,967 steps an epoch, 7 epochs
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.REFERENCE_WORLD_SIZE": 8,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0001,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.MAX_ITER": 7 * 6967,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.STEPS": (2 * 6967, 5 * 6967),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.WARMUP_FACTOR": 1 / 3,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 35.0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": False,
}
NETS = {
    "R_50": {"DEPTH": 50, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64},
    "R_101": {"DEPTH": 101, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64},
    "X_101": {"DEPTH": 101, "NUM_GROUPS": 64, "WIDTH_PER_GROUP": 4},
}
SELSA = {"MODEL.AGGREGATION.BOX_FEATURES": "SELSA", "MODEL.SELSA.NUM_HEADS": 16}
TROIA = {
    "MODEL.AGGREGATION.ROI_FEATURES": "TemporalRoIAlign",
    "MODEL.TEMPORAL_ROI_ALIGN.NUM_MOST_SIMILAR": 2,
    "MODEL.TEMPORAL_ROI_ALIGN.NUM_HEADS": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 3,
}
NO_TROIA = {"MODEL.AGGREGATION.ROI_FEATURES": "", "MODEL.ROI_BOX_HEAD.NUM_FC": 2}
NO_CLAB = {"MODEL.CONTRASTIVE.ENABLED": False}
METHODS = {
    "faster_rcnn": {"MODEL.AGGREGATION.BOX_FEATURES": "", **NO_TROIA, **NO_CLAB},
    "selsa": {**SELSA, **NO_TROIA, **NO_CLAB},
    "temporal_roi_align": {**SELSA, **TROIA, **NO_CLAB},
    "clab": {
        **SELSA,
        **TROIA,
        "MODEL.CONTRASTIVE.ENABLED": True,
        "MODEL.CONTRASTIVE.IN_FEATURE": "res4",
        "MODEL.CONTRASTIVE.CONV_DIM": 512,
        "MODEL.CONTRASTIVE.HIDDEN_DIM": 256,
        "MODEL.CONTRASTIVE.EMBED_DIM": 128,
        "MODEL.CONTRASTIVE.TEMPERATURE": 0.1,
        "MODEL.CONTRASTIVE.WEIGHT.START": 0.005,
        "MODEL.CONTRASTIVE.WEIGHT.SCHEDULE": "linear",
        "MODEL.CONTRASTIVE.WEIGHT.STEPS": 25000,
    },
}

#: Configs beside the paper's: what each starts from, and all that it changes.
BEYOND_PAPER = {
    **{
        f"ImageNetVID/flow_guided_{net}_DC5.yaml": (
            f"ImageNetVID/faster_rcnn_{net}_DC5.yaml",
            {
                "MODEL.AGGREGATION.MAPS": "FlowGuided",
                "TEST.REFERENCES.SAMPLING": "fixed",
                "TEST.REFERENCES.NUM": 20,
            },
        )
        for net in ("R_50", "R_101")
    },
    **{
        f"ImageNetVID/temporal_roi_align_alone_{net}_DC5.yaml": (
            f"ImageNetVID/temporal_roi_align_{net}_DC5.yaml",
            {"MODEL.AGGREGATION.BOX_FEATURES": ""},
        )
        for net in ("R_50", "R_101")
    },
    "ImageNetVID/clab_cascade_R_101_DC5.yaml": (
        "ImageNetVID/clab_R_101_DC5.yaml",
        {
            "MODEL.ROI_HEADS.NAME": "TemporalCascadeROIHeads",
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        },
    ),
}


def load(name: str) -> CfgNode:
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(CONFIGS / name), allow_unsafe=False)
    return cfg


def value(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def check(cfg: CfgNode, expected: dict[str, object]) -> None:
    for key, wanted in expected.items():
        found = value(cfg, key)
        if isinstance(wanted, float):
            assert found == pytest.approx(wanted, rel=1e-12), key
        else:
            assert found == wanted, key


@pytest.mark.parametrize("name", ALL)
def test_config_is_valid(name: str) -> None:
    cfg = load(name)
    validate_config(cfg)
    own = {name for name, _, _ in cfg.DATASETS.VID}
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert dataset in own or dataset in DatasetCatalog
    assert (CONFIGS / name).read_text().startswith("# "), "say in the first line what it is for"


def test_every_method_has_every_backbone() -> None:
    assert set(PAPER) - set(BEYOND_PAPER) == {
        f"ImageNetVID/{method}_{net}_DC5.yaml" for method in METHODS for net in NETS
    }


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", METHODS)
def test_paper_config(method: str, net: str) -> None:
    cfg = load(f"ImageNetVID/{method}_{net}_DC5.yaml")
    check(cfg, RECIPE)
    check(cfg, METHODS[method])
    check(cfg, {f"MODEL.RESNETS.{key}": wanted for key, wanted in NETS[net].items()})
    assert cfg.MODEL.WEIGHTS, "training starts from ImageNet weights"
    assert cfg.OUTPUT_DIR.endswith(f"/{method}_{net}_DC5")


def test_paper_learning_rate() -> None:
    """By iteration: 1/3 of it at first, all of it after 500, a tenth after epochs 2 and 5."""
    cfg = load("ImageNetVID/clab_R_101_DC5.yaml")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    table = {
        0: 0.01 / 3,
        250: 0.01 * (1 / 3 + 2 / 3 * 250 / 500),
        499: 0.01 * (1 / 3 + 2 / 3 * 499 / 500),
        500: 0.01,
        13933: 0.01,
        13934: 0.001,
        34834: 0.001,
        34835: 0.0001,
        48768: 0.0001,
    }
    for iteration, wanted in table.items():
        schedule.last_epoch = iteration
        assert schedule.get_lr()[0] == pytest.approx(wanted, rel=1e-9), iteration


def test_pyramid_config_is_its_base_with_the_papers_recipe() -> None:
    cfg, base = load("ImageNetVID/clab_R_50_FPN.yaml"), load("Base-RCNN-FPN.yaml")
    for key in ("BACKBONE", "FPN", "ANCHOR_GENERATOR", "RPN", "ROI_HEADS", "ROI_BOX_HEAD"):
        assert cfg.MODEL[key] == base.MODEL[key], key
    assert cfg.MODEL.RESNETS == base.MODEL.RESNETS
    assert load("ImageNetVID/clab_R_50_DC5.yaml").SOLVER == cfg.SOLVER
    check(cfg, METHODS["clab"])


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("Swin_T", [96, 192, 384, 768]),
        ("Swin_B", [128, 256, 512, 1024]),
        ("ConvNeXt_B", [128, 256, 512, 1024]),
    ],
)
def test_other_networks_with_the_papers_schedule(name: str, channels: list[int]) -> None:
    cfg = load(f"ImageNetVID/clab_{name}_FPN.yaml")
    check(cfg, METHODS["clab"])
    paper = load("ImageNetVID/clab_R_50_FPN.yaml")
    for key in ("IMS_PER_BATCH", "MAX_ITER", "STEPS", "REFERENCE_WORLD_SIZE"):
        assert cfg.SOLVER[key] == paper.SOLVER[key]
    assert cfg.DATASETS == paper.DATASETS
    assert cfg.MODEL.WEIGHTS and cfg.OUTPUT_DIR.endswith(f"/clab_{name}_FPN")
    cfg.MODEL.DEVICE = "cpu"
    shapes = build_backbone(cfg).bottom_up.output_shape()
    assert [shapes[f"res{stage}"].channels for stage in range(2, 6)] == channels
    assert [shapes[f"res{stage}"].stride for stage in range(2, 6)] == [4, 8, 16, 32]


@pytest.mark.parametrize("folder", ["", "from_scratch/"])
def test_mini_vid_configs_differ_in_the_method_alone(folder: str) -> None:
    """Else a comparison of them says nothing about the method."""
    method_keys = {"AGGREGATION", "CONTRASTIVE"}
    configs = [load(f"MiniVID/{folder}{method}.yaml") for method in METHODS]
    for cfg in configs:
        cfg.OUTPUT_DIR = ""
        for key in method_keys:
            del cfg.MODEL[key]
    assert all(cfg == configs[0] for cfg in configs)
    for method, wanted in METHODS.items():
        switches = {k: on for k, on in wanted.items() if "AGGREGATION" in k or "ENABLED" in k}
        check(load(f"MiniVID/{folder}{method}.yaml"), switches)


@pytest.mark.parametrize("net", ["efficientnet_lite0", "mobilenetv3", "resnet18"])
def test_small_detectors_of_both_kinds(net: str) -> None:
    """Built, and with a network and data in common."""
    kinds = ("temporal_dense", "temporal_roi_align")
    one, two = (load(f"Lite/{kind}_{net}_320.yaml") for kind in kinds)
    for key in ("DATASETS", "INPUT", "SOLVER", "TEST"):
        assert one[key] == two[key]
    assert (one.MODEL.WEIGHTS, one.MODEL.TIMM) == (two.MODEL.WEIGHTS, two.MODEL.TIMM)
    for cfg in (one, two):
        cfg.MODEL.DEVICE = "cpu"
        assert build_model(cfg).aggregates
        larger = load(f"{cfg.OUTPUT_DIR.removeprefix('output/').removesuffix('320')}416.yaml")
        assert (larger.INPUT.MIN_SIZE_TEST, larger.INPUT.MAX_SIZE_TEST) == (416, 672)
        assert larger.MODEL.TIMM == cfg.MODEL.TIMM


@pytest.mark.parametrize(
    "name", ["temporal_dense_R_50", "temporal_dense_boxes_R_50", "temporal_dense_Swin_T"]
)
def test_one_stage_with_the_papers_schedule(name: str) -> None:
    cfg = load(f"ImageNetVID/{name}_FPN.yaml")
    paper = load("ImageNetVID/clab_R_50_FPN.yaml")
    for key in ("IMS_PER_BATCH", "MAX_ITER", "STEPS", "REFERENCE_WORLD_SIZE"):
        assert cfg.SOLVER[key] == paper.SOLVER[key]
    assert (cfg.DATASETS, cfg.TEST.REFERENCES) == (paper.DATASETS, paper.TEST.REFERENCES)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert model.aggregates
    # Every map that is made is taken: DistributedDataParallel wants a gradient for each weight.
    assert list(model.backbone.output_shape()) == model.in_features


def test_mini_vid_one_stage_configs_differ_in_the_aggregation_alone() -> None:
    single, temporal = load("MiniVID/dense.yaml"), load("MiniVID/temporal_dense.yaml")
    assert not any(single.MODEL.AGGREGATION.values())
    assert temporal.MODEL.AGGREGATION.PREDICTIONS == "DualAffinity"
    two_stage = load("MiniVID/temporal_roi_align.yaml")
    assert (single.DATASETS, single.INPUT, single.SEED) == (
        two_stage.DATASETS, two_stage.INPUT, two_stage.SEED,
    )  # fmt: skip
    for cfg in (single, temporal):
        cfg.OUTPUT_DIR, cfg.MODEL.AGGREGATION.PREDICTIONS = "", ""
    assert single == temporal


@pytest.mark.parametrize(
    "name", ["ImageNetVID/temporal_dense{}_R_50_FPN.yaml", "MiniVID/temporal_dense{}.yaml"]
)
def test_one_stage_with_boxes_differs_in_the_pooling_alone(name: str) -> None:
    without, boxes = load(name.format("")), load(name.format("_boxes"))
    assert (without.MODEL.DENSE.POOLER_RESOLUTION, boxes.MODEL.DENSE.POOLER_RESOLUTION) == (0, 5)
    for cfg in (without, boxes):
        cfg.OUTPUT_DIR, cfg.MODEL.DENSE.POOLER_RESOLUTION = "", 0
    assert without == boxes


@pytest.mark.parametrize("folder", ["", "from_scratch/"])
def test_mini_vid_weight_falls_as_the_papers(folder: str) -> None:
    cfg = load(f"MiniVID/{folder}clab.yaml")
    steps = cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS
    assert steps == round(cfg.SOLVER.MAX_ITER * 25000 / 48769)


def test_config_of_the_golden_checkpoint() -> None:
    """Shapes as in the checkpoint that the golden data were made with."""
    cfg = load("quick_schedules/clab_tiny_golden.yaml")
    cfg.MODEL.DEVICE = "cpu"
    shapes = {name: tuple(w.shape) for name, w in build_model(cfg).state_dict().items()}
    assert shapes["backbone.bottom_up.stem.conv1.weight"] == (16, 3, 7, 7)
    assert shapes["backbone.bottom_up.res2.0.conv2.weight"] == (16, 16, 3, 3)
    assert shapes["backbone.bottom_up.res5.0.conv3.weight"] == (512, 128, 1, 1)
    assert shapes["backbone.neck.weight"] == (64, 512, 3, 3)
    assert shapes["proposal_generator.rpn_head.conv.weight"] == (64, 64, 3, 3)
    assert shapes["proposal_generator.rpn_head.objectness_logits.weight"] == (12, 64, 1, 1)
    assert shapes["roi_heads.box_predictor.cls_score.weight"] == (31, 128)
    assert shapes["roi_heads.box_predictor.bbox_pred.weight"] == (120, 128)
    assert shapes["contrastive_branch.loss.embedding.conv.weight"] == (512, 256, 3, 3)


@pytest.mark.parametrize("name", BEYOND_PAPER)
def test_config_beside_the_papers_is_its_base_with_the_method(name: str) -> None:
    base, changes = BEYOND_PAPER[name]
    cfg, expected = load(name), load(base)
    expected.merge_from_list([part for change in changes.items() for part in change])
    expected.OUTPUT_DIR = f"output/{name.removesuffix('.yaml')}"
    assert cfg == expected


def test_constants_beside_the_papers() -> None:
    """Those of FGFA's and Cascade R-CNN's papers; equal to the defaults, and written out."""
    flow = load("ImageNetVID/flow_guided_R_101_DC5.yaml").MODEL.FLOW_GUIDED
    assert (flow.FLOW_SCALE, flow.EMBED_DIMS) == (0.5, [512, 512, 2048])
    assert (flow.FLOW_WEIGHTS, flow.TRAIN_FLOW, flow.FLOW_UPDATES) == ("torchvision", False, 12)
    cascade = load("ImageNetVID/clab_cascade_R_101_DC5.yaml").MODEL.ROI_BOX_CASCADE_HEAD
    assert cascade.IOUS == (0.5, 0.6, 0.7)
    weights = [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]
    assert [tuple(each) for each in cascade.BBOX_REG_WEIGHTS] == weights
