"""A part that isn't what its place asks for ends a job in one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import whole_detector
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone
from made_clips import losses_of, test_clips, training_clip
from registered import quick_config
from torch import nn

from clab_d2.data import ReferenceSampling
from clab_d2.data.reference_schedule import ReferenceSchedule
from clab_d2.engine import validate_config
from clab_d2.errors import ConfigError, PartError
from clab_d2.modeling import (
    BoxAggregation,
    ContrastiveLoss,
    MapAggregation,
    RoIAggregation,
    TemporalDetector,
)
from clab_d2.registry import Registry


class Base(nn.Module):
    """What a part of these tests is built as, whatever it is given."""

    def __init__(self, *arguments: object) -> None:
        super().__init__()


class Maps(Base, MapAggregation):
    gives: Callable[[dict], Any] = staticmethod(lambda maps: maps)
    keeps: Callable[[torch.Tensor], Any] = staticmethod(lambda images: ())

    def encode(self, images, maps):
        return self.keeps(images)

    def forward(self, key, references, counts):
        return self.gives(key.maps)


class RoIs(Base, RoIAggregation):
    def forward(self, roi_features, *arguments, **options):
        return roi_features[:, 1:]


class Boxes(Base, BoxAggregation):
    gives: Callable[[torch.Tensor], Any] = staticmethod(lambda features: features)
    keeps: Callable[[torch.Tensor], Any] = staticmethod(lambda features: (features,))

    def encode_references(self, features):
        return self.keeps(features)

    def forward(self, features, references, counts):
        return self.gives(features)


class Contrast(Base, ContrastiveLoss):
    def forward(self, frames):
        return frames[0].feature


def detector(**parts: nn.Module) -> TemporalDetector:
    """A small detector into which parts were put."""
    cfg = quick_config("MODEL.AGGREGATION.ROI_FEATURES", "", "MODEL.AGGREGATION.MAPS", "")
    model = whole_detector.build(cfg)
    if "maps" in parts:
        model.map_aggregation = parts["maps"]
    if "rois" in parts:
        model.roi_heads.roi_aggregation = parts["rois"]
    if "boxes" in parts:
        head = model.roi_heads.box_head
        head.aggregations = nn.ModuleList([parts["boxes"]] * len(head.fcs))
    if "loss" in parts:
        model.contrastive_branch.loss = parts["loss"]
    if "backbone" in parts:
        model.backbone = parts["backbone"]
    return model


def made(kind: type[nn.Module], **methods: Callable) -> nn.Module:
    part = kind()
    for name, method in methods.items():
        setattr(part, name, method)
    return part


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"maps": made(Maps, gives=lambda maps: list(maps.values()))},
            r"Maps\.forward gives a list, where a dict of .* c5",
        ),
        ({"maps": made(Maps, gives=lambda maps: {})}, r"Maps\.forward gives a NoneType.*'c5'"),
        (
            {"maps": made(Maps, gives=lambda maps: {"c5": maps["c5"][..., 1:]})},
            r"Maps\.forward gives shape \(1, 32, 4, 5\).*\(1, 32, 4, 6\) is due.*'c5'",
        ),
        (
            {"maps": made(Maps, keeps=lambda images: images)},
            r"Maps\.encode gives a Tensor, where a tuple or list is due",
        ),
        (
            {"maps": made(Maps, keeps=lambda images: [images.mean()])},
            r"Maps\.encode gives shape \(\).*\(\d+\) is due: N frames",
        ),
        ({"rois": made(RoIs)}, r"RoIs\.forward gives shape \(\d+, 31, 7, 7\).*\(\d+, 32, 7, 7\)"),
        (
            {"boxes": made(Boxes, gives=lambda features: features[:, :3])},
            r"Boxes\.forward gives shape \(\d+, 3\).*\(\d+, 32\) is due: \(R, C\)",
        ),
        (
            {"boxes": made(Boxes, gives=lambda features: None)},
            r"Boxes\.forward gives a NoneType",
        ),
        (
            {"boxes": made(Boxes, keeps=lambda features: features)},
            r"Boxes\.encode_references gives a Tensor, where a tuple or list is due",
        ),
        (
            {"boxes": made(Boxes, keeps=lambda features: (features.T,))},
            r"Boxes\.encode_references gives shape \(32, \d+\).*M the reference RoIs",
        ),
        ({"loss": made(Contrast)}, r"Contrast\.forward gives shape .*: the loss, a scalar"),
    ],
)
def test_wrong_results_are_told_where_they_are_given(
    parts: dict[str, nn.Module], message: str
) -> None:
    model = detector(**parts).train()
    with pytest.raises(PartError, match=message) as caught:
        losses_of(model, [training_clip(1), training_clip(2)])
    assert "docs/extend.md" in str(caught.value)
    assert "\n" not in str(caught.value)
    if "loss" in parts:
        return
    model.eval()
    with pytest.raises(PartError, match=message):
        model(test_clips(1, 1))


class WrongBackbone(Backbone):
    def __init__(self, gives: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.gives = gives

    def output_shape(self):
        return {"c5": ShapeSpec(channels=32, stride=16)}

    def forward(self, images):
        number, _, height, width = images.shape
        return {
            name: torch.zeros(number, channels, height // stride, width // stride)
            for name, (channels, stride) in self.gives.items()
        }


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ({"c4": (32, 16)}, r"WrongBackbone\.forward gives a NoneType.*'c5' of its output_shape"),
        ({"c5": (31, 16)}, r"gives shape \(\d+, 31, 4, 6\).*\(\d+, 32, \*, \*\) is due"),
        ({"c5": (32, 8)}, r"map 'c5' of \(8, 12\) for images of \(64, 96\).*stride 16"),
    ],
)
def test_a_backbone_that_is_not_what_it_says(
    gives: dict[str, tuple[int, int]], message: str
) -> None:
    model = detector(backbone=WrongBackbone(gives)).eval()
    with pytest.raises(PartError, match=message):
        model(test_clips(1, 1))


class Giving(ReferenceSampling):
    reach = (2, 1)

    def __init__(self, frames: list) -> None:
        self.given = frames

    def frames(self, num_frames, key):
        return self.given


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], r"Giving\.frames gives no frame for key frame 0 of a video of 4"),
        ([0, 4], r"gives frame 4 .*from 0 to 1 are due"),
        ([-1], r"gives frame -1"),
        ([2], r"gives frame 2 .*its reach is \(2, 1\)"),
        ([0.5], r"gives frame 0\.5"),
    ],
)
def test_frames_that_are_not_there(frames: list, message: str) -> None:
    with pytest.raises(PartError, match=message):
        ReferenceSchedule(Giving(frames), 4)
    assert Giving([0, 1, 0]).references(4, 0) == [0, 1, 0]


@pytest.fixture
def registry() -> Registry:
    return Registry("MADE", "MODEL.MADE")


def test_a_name_that_is_not_registered_is_told_with_those_there_are(registry: Registry) -> None:
    registry.register(Boxes, name="b")
    registry.register(Maps, name="a")
    with pytest.raises(ConfigError, match=r"MODEL\.MADE 'c' is not registered.* a, b, .*--import"):
        registry.build("c", BoxAggregation)


def test_missing_methods_are_named(registry: Registry) -> None:
    @registry.register()
    class Half(BoxAggregation):
        def forward(self, features, references, counts):
            return features

    with pytest.raises(PartError, match=r"MODEL\.MADE 'Half': .* lacks encode_references\(\)"):
        registry.get("Half")


def test_another_kind_of_part_is_named(registry: Registry) -> None:
    registry.register(Maps)
    with pytest.raises(PartError, match=r"'Maps' is a Maps; derive it from .*BoxAggregation"):
        registry.build("Maps", BoxAggregation)


def test_a_constructor_with_other_arguments_is_told(registry: Registry) -> None:
    @registry.register()
    class Other(Boxes):
        def __init__(self, cfg):
            super().__init__()

    @registry.register()
    class Failing(Boxes):
        def __init__(self, *arguments):
            super().__init__(len(3))

    with pytest.raises(PartError, match=r"MODEL\.MADE 'Other' can't be built: .*__init__"):
        registry.build("Other", BoxAggregation, None, 32)
    # Its own mistakes are shown with the line that they are in.
    with pytest.raises(TypeError, match=r"no len\(\)"):
        registry.build("Failing", BoxAggregation, None, 32)


def test_detectors_that_take_images_or_lack_something() -> None:
    class Unsaid(nn.Module):
        pass

    class Unfinished(TemporalDetector):
        head_needs_references = False

    META_ARCH_REGISTRY.register(Unsaid)
    META_ARCH_REGISTRY.register(Unfinished)
    for name, message in (
        ("GeneralizedRCNN", r"'GeneralizedRCNN' takes images"),
        ("Unsaid", r"class Unsaid has no needs_references.*TemporalDetector"),
        ("Unfinished", r"class Unfinished lacks detect, detection_losses, reference_parts"),
        ("Untold", r"'Untold' is not registered; ours are .*--import"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_config(quick_config("MODEL.META_ARCHITECTURE", name))


def test_a_backbone_that_is_none() -> None:
    @BACKBONE_REGISTRY.register()
    def build_no_backbone(cfg, input_shape):
        return nn.Identity()

    with pytest.raises(PartError, match=r"'build_no_backbone' is a Identity; derive it from"):
        whole_detector.build(quick_config("MODEL.BACKBONE.NAME", "build_no_backbone"))


class OwnMaps(Base, MapAggregation):
    needs_references = False

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, key, references, counts):
        assert not references
        return {name: self.scale * value for name, value in key.maps.items()}


class OwnBoxes(Base, BoxAggregation):
    needs_references = False

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def encode_references(self, features):
        raise AssertionError("nobody needs them")

    def forward(self, features, references, counts):
        assert len(references) == 0
        return self.scale * features


@pytest.mark.parametrize("place", ["maps", "boxes"])
def test_parts_that_need_no_references_are_used_without(place: str) -> None:
    part = OwnMaps() if place == "maps" else OwnBoxes()
    model = detector(**{"boxes": OwnBoxes(), place: part})
    assert not model.aggregates
    sum(losses_of(model.train(), [training_clip(1), training_clip(2)]).values()).backward()
    assert part.scale.grad is not None
    model.eval()
    (clip,) = test_clips(1, 1)
    clip["reference_frame_ids"] = []
    before = model([clip])[0]["instances"].scores
    model.train().eval()  # forgets the frame
    with torch.no_grad():
        part.scale.fill_(0)
    after = model([clip])[0]["instances"].scores
    assert before.shape != after.shape or not torch.allclose(before, after)


class NoWeights(Base, ContrastiveLoss):
    """Pulls frames together, without parameters of its own."""

    def forward(self, frames):
        rows = torch.cat([frame.feature.mean(dim=(2, 3)) for frame in frames])
        return rows.var(dim=0).mean()


@pytest.mark.parametrize("iteration", [0, 10**6])
def test_a_loss_without_parameters(iteration: int) -> None:
    """Also once its weight is nothing: Detectron2's trainer wants a tensor."""
    model = detector(loss=NoWeights()).train()
    losses = losses_of(model, [training_clip(1), training_clip(2)], iteration)
    assert isinstance(losses["loss_contrastive"], torch.Tensor)
    assert (losses["loss_contrastive"] > 0) == (iteration == 0)
