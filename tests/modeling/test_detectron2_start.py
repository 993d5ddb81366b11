"""Detectors of Detectron2's model zoo, and temporal ones that start as them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Instances
from made_clips import losses_of, training_clip

from clab_d2 import get_clab_cfg
from clab_d2.engine import VIDCheckpointer
from clab_d2.video import VideoDetector


class Family(NamedTuple):
    """Names of configs: ours for a single frame, ours over frames, and the zoo's."""

    single: str
    temporal: str
    theirs: str


FAMILIES = (
    *(
        Family(
            f"faster_rcnn_R_50_{kind}",
            f"temporal_R_50_{kind}",
            f"COCO-Detection/faster_rcnn_R_50_{kind}_3x.yaml",
        )
        for kind in ("FPN", "DC5", "C4")
    ),
    Family(
        "cascade_rcnn_R_50_FPN",
        "temporal_cascade_R_50_FPN",
        "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml",
    ),
)
#: A thinner net on smaller images; nothing that decides what is detected.
SMALL: list[Any] = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8),
    *("MODEL.FPN.OUT_CHANNELS", 32),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 64),
    *("INPUT.MIN_SIZE_TEST", 128),
    *("INPUT.MAX_SIZE_TEST", 192),
]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.single)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def load(repo_root: Path) -> Any:
    def load(name: str, *options: Any) -> CfgNode:
        cfg = get_clab_cfg()
        cfg.merge_from_file(str(repo_root / f"configs/COCO-Start/{name}.yaml"))
        cfg.merge_from_list([*SMALL, *options])
        return cfg

    return load


def make_frames() -> list[np.ndarray]:
    """RGB pictures of blocks, which give a random net something to tell apart."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    return [block.repeat(20, axis=0).repeat(20, axis=1) for block in blocks]


def their_detector(family: Family, folder: Path) -> tuple[Any, CfgNode, str]:
    """Detectron2's detector with random weights, its config, and its file in the zoo's format."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(family.theirs))
    cfg.merge_from_list([*SMALL, "MODEL.MASK_ON", False])
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    set_statistics(model, cfg)
    with torch.no_grad():
        # Else a random net finds all classes, and all anchors, about as likely.
        for name, weight in model.named_parameters():
            if name.endswith("cls_score.weight"):  # one, or one of each stage
                weight.mul_(30)
            if name.endswith(("bbox_pred.weight", "objectness_logits.weight")):
                weight.mul_(2)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    path = folder / "model_final_000000.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    return model, cfg, str(path)


def set_statistics(model: torch.nn.Module, cfg: CfgNode) -> None:
    """Give frozen batch norms the statistics of a frame, as of a training; else maps are huge."""

    def set_own(norm: FrozenBatchNorm2d, arguments: tuple[torch.Tensor]) -> None:
        norm.running_mean.copy_(arguments[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(arguments[0].var(dim=(0, 2, 3)))

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(set_own) for norm in norms]
    detect_theirs(model, cfg, make_frames()[0])
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def detect_theirs(model: Any, cfg: CfgNode, frame: np.ndarray) -> Instances:
    """As Detectron2's DefaultPredictor, from an RGB frame."""
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    image = frame[:, :, ::-1]
    resized = resize.get_transform(image).apply_image(image)
    tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1).copy())
    clip = {"image": tensor, "height": frame.shape[0], "width": frame.shape[1]}
    return model([clip])[0]["instances"]


def test_the_single_frame_config_detects_what_detectron2_does(
    family: Family, load: Any, tmp_path: Path
) -> None:
    model, their_cfg, weights = their_detector(family, tmp_path)
    name, options = family.single, ("MODEL.WEIGHTS", weights)
    exact = VideoDetector(load(name, *options, "TEST.OPTIMIZE", False)).detect(make_frames())
    folded = VideoDetector(load(name, *options)).detect(make_frames())
    found = 0
    for result, folded_result in zip(exact, folded, strict=True):
        ours, faster = result.instances, folded_result.instances
        theirs = detect_theirs(model, their_cfg, result.image)
        found += len(theirs)
        assert len(ours) == len(theirs)
        boxes = ours.pred_boxes.tensor
        torch.testing.assert_close(boxes, theirs.pred_boxes.tensor, atol=1e-3, rtol=0)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        # With batch norms folded, rounding may swap two detections of about the same score.
        alike = ours.pred_classes[:, None] == faster.pred_classes
        alike &= (ours.scores[:, None] - faster.scores).abs() < 1e-3
        alike &= (boxes[:, None] - faster.pred_boxes.tensor).abs().amax(dim=-1) < 1e-2
        assert alike.any(dim=1).float().mean() > 0.95
    assert found > 100


def test_the_weights_are_the_zoos(family: Family, load: Any) -> None:
    """That is, those of the config whose detections are compared above."""
    url = model_zoo.get_checkpoint_url(family.theirs)
    for name in (family.single, family.temporal):
        named = load(name).MODEL.WEIGHTS
        assert url.endswith(named.removeprefix("detectron2://"))


def test_the_temporal_detector_starts_as_the_single_frame_one(
    family: Family,
    load: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, _, weights = their_detector(family, tmp_path)
    options = ("MODEL.RPN.POST_NMS_TOPK_TEST", 20)  # the same for both; references are slow
    detectors = []
    for name in (family.temporal, family.single):
        cfg = load(name, *options)
        model = build_model(cfg)
        VIDCheckpointer(model, purpose="train").load(weights)
        detectors.append(VideoDetector(cfg, model))
    temporal, single = detectors
    assert temporal.model.needs_references
    [line] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "start from random values" in line
    parts = line.partition("random values: ")[2].split(", ")
    assert parts and all("aggregation" in part for part in parts)
    results = zip(temporal.detect(make_frames()), single.detect(make_frames()), strict=True)
    for ours, theirs in ((one.instances, other.instances) for one, other in results):
        assert len(ours) > 0
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)


def test_what_starts_as_the_identity_learns(family: Family, load: Any, tmp_path: Path) -> None:
    """The gate and the output maps at once, all else of the aggregation behind them."""
    cfg = load(family.temporal, "MODEL.RPN.POST_NMS_TOPK_TEST", 20)
    _, _, weights = their_detector(family, tmp_path)
    model = build_model(cfg).train()
    VIDCheckpointer(model, purpose="train").load(weights)
    own = {n: p for n, p in model.named_parameters() if "aggregation" in n}
    assert any(name.endswith("roi_aggregation.gate") for name in own)
    optimizer = torch.optim.Adam(own.values(), lr=0.01)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        sum(losses_of(model, [training_clip(1)]).values()).backward()
        moved.append({name for name, weight in own.items() if weight.grad.any()})
        optimizer.step()
    assert moved[0] == {n for n in own if n.endswith((".gate", "output.weight", "output.bias"))}
    # A softmax over RoIs doesn't feel an offset that all keys have in common.
    assert moved[1] >= {name for name in own if not name.endswith("key.bias")}
