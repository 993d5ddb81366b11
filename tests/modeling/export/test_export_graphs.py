"""The graphs, run by PyTorch, in place of the detector that they are made of: what runs them in an
exported model (memory, choice of detections) is the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from exported import assert_alike, moving_noise, random_config, random_detector
from torch import nn

from clab_d2.errors import ConfigError
from clab_d2.export.onnx_folder import describe
from clab_d2.runtime.model import ExportedModel
from clab_d2.runtime.sessions import GraphSession
from clab_d2.video import VideoDetector
from clab_d2.video.exported_model import ExportedClipModel

_STAGES = ["res3", "res4", "res5"]
# The pyramid of configs/OwnVideos and of configs/Lite, with their other parts tiny.
PYRAMID = ("MODEL.RESNETS.OUT_FEATURES", _STAGES, "MODEL.FPN.IN_FEATURES", _STAGES,
           "MODEL.BACKBONE.BOTTOM_UP", "build_resnet_backbone")  # fmt: skip
LIGHT_PYRAMID = (
    *PYRAMID, "MODEL.BACKBONE.NAME", "build_light_fpn_backbone", "MODEL.RPN.IN_FEATURES",
    ["p3", "p4", "p5"], "MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4"],
    "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]],
)  # fmt: skip
# A network of timm whose padding goes by the size of maps, as configs/OwnVideos has one.
TIMM_PYRAMID = (
    *LIGHT_PYRAMID, "MODEL.BACKBONE.NAME", "build_fpn_backbone", "MODEL.BACKBONE.BOTTOM_UP",
    "build_timm_backbone", "MODEL.TIMM.NAME", "tf_mobilenetv3_small_minimal_100",
    "MODEL.CONTRASTIVE.ENABLED", False,
)  # fmt: skip
DENSE_PYRAMID = (
    *PYRAMID, "MODEL.BACKBONE.NAME", "build_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.DENSE.POOLER_RESOLUTION", 3,
)  # fmt: skip


class TorchSession(GraphSession):
    """A graph by PyTorch."""

    def __init__(self, graph: nn.Module, inputs: Sequence[Any], outputs: Sequence[str]) -> None:
        self.graph, self.groups, self.outputs = graph, inputs, list(outputs)
        self.inputs = [
            name for group in inputs for name in ([group] if isinstance(group, str) else group)
        ]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        def take(group: Any) -> Any:
            if isinstance(group, str):
                return torch.from_numpy(np.array(feed.get(group, np.ones(0, np.float32))))
            return [take(name) for name in group]

        with torch.no_grad():
            given = self.graph(*map(take, self.groups))
        return {
            name: tensor.numpy() for name, tensor in zip(self.outputs, given, strict=True)
        }


def by_graphs(cfg: CfgNode, model: Any) -> VideoDetector:
    graphs = model.export_graphs()
    description = describe(model, cfg, ["a", "b", "c"], graphs)
    frame = TorchSession(graphs.frame, ["image", "image_size"], graphs.frame.output_names)
    references = [f"reference_{name}" for name in graphs.references]
    key_frame = TorchSession(
        graphs.key_frame, [list(graphs.own), "counts", references], ["boxes_of_classes", "scores"]
    )
    return VideoDetector.of(ExportedClipModel(ExportedModel(description, frame, key_frame)))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("clab_quick", ()),
        ("clab_quick", ("MODEL.TEMPORAL_ROI_ALIGN.NUM_HEADS", 0, "INPUT.FORMAT", "BGR")),
        ("clab_quick", ("MODEL.AGGREGATION.BOX_FEATURES", "")),
        ("selsa_quick", ("TEST.REFERENCES.SAMPLING", "fixed")),
        ("faster_rcnn_quick", ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.3)),
        ("clab_fpn_quick", ()),
        ("clab_fpn_quick", LIGHT_PYRAMID),
        ("clab_fpn_quick", TIMM_PYRAMID),
        ("dense_quick", ()),
        ("dense_quick", ("MODEL.DENSE.TOWERS", "Separable", "MODEL.AGGREGATION.PREDICTIONS", "")),
        ("dense_quick", ("MODEL.DENSE.HEAD", "RetinaNet", "MODEL.DENSE.POOLER_RESOLUTION", 3)),
        ("dense_quick", DENSE_PYRAMID),
        # More than there are: padded.
        ("dense_quick", ("MODEL.DENSE.SELECT.NUM", 90, "MODEL.DENSE.SELECT.NUM_CANDIDATES", 90,
                         "MODEL.DENSE.SELECT.NMS_THRESH", 0.3)),
        # More than there are: padded.
        ("clab_quick", ("MODEL.RPN.POST_NMS_TOPK_TEST", 90, "MODEL.RPN.NMS_THRESH", 0.3)),
    ],
)
def test_detections_are_those_of_the_detector(
    config: str, options: Sequence[object], repo_root: Path
) -> None:
    cfg = random_config(repo_root / "configs" / "quick_schedules" / f"{config}.yaml", *options)
    model = random_detector(cfg)
    detector, graphs = VideoDetector(cfg, model, ["a", "b", "c"]), by_graphs(cfg, model)
    video = moving_noise(1, 6, 70, 100)
    for mode in ("offline", "windowed"):
        assert_alike(graphs.detect(video, mode), detector.detect(video, mode), least=50)
    other = moving_noise(2, 3, 128, 96)
    assert_alike(graphs.detect(iter(other)), detector.detect(iter(other)), least=10)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("clab_cascade_quick", "TemporalCascadeROIHeads can't be exported"),
        ("flow_guided_quick", "FlowGuided can't be exported"),
    ],
)
def test_what_cannot_be_exported_is_told(config: str, message: str, repo_root: Path) -> None:
    cfg = random_config(repo_root / "configs" / "quick_schedules" / f"{config}.yaml")
    with pytest.raises(ConfigError, match=message):
        random_detector_of_any_kind(cfg).export_graphs()


def random_detector_of_any_kind(cfg: CfgNode) -> Any:
    from detectron2.modeling import build_model

    return build_model(cfg).eval()
