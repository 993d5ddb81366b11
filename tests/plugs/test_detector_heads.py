"""Every detector, and every second stage, that is registered with Detectron2 as ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import whole_detector
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from registered import assert_same_weights, by_config, by_constructor, ours, quick_config

from clab_d2.engine import validate_config
from clab_d2.modeling import TemporalDetector

# Those without a memory, by design: clips must come with all images. Others are compared with them.
DETECTORS = [name for name in ours(META_ARCH_REGISTRY) if not name.startswith("Plain")]
HEADS = ours(ROI_HEADS_REGISTRY)
SHAPES = {"c5": ShapeSpec(channels=32, stride=16)}

CASES = [
    *(("MODEL.META_ARCHITECTURE", name) for name in DETECTORS),
    *(("MODEL.ROI_HEADS.NAME", name) for name in HEADS),
]
AGGREGATIONS = {
    "single frame": ("", "", "", ""),
    "what the head has": ("", "TemporalRoIAlign", "SELSA", "DualAffinity"),
    "maps": ("SimilarMaps", "", "", ""),
    "everywhere": ("SimilarMaps", "TemporalRoIAlign", "SELSA", "DualAffinity"),
}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
each_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)


def config(case: tuple[str, str], aggregation: str = "everywhere") -> CfgNode:
    maps, roi_features, box_features, predictions = AGGREGATIONS[aggregation]
    return quick_config(
        *case,
        # what a cascade asks for, and nothing else minds
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.AGGREGATION.MAPS", maps),
        *("MODEL.AGGREGATION.ROI_FEATURES", roi_features),
        *("MODEL.AGGREGATION.BOX_FEATURES", box_features),
        *("MODEL.AGGREGATION.PREDICTIONS", predictions),
    )


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = META_ARCH_REGISTRY.get(name), config(("MODEL.META_ARCHITECTURE", name))
    built = by_config(entry, cfg)
    assert isinstance(built, TemporalDetector)
    assert_same_weights(built, by_constructor(entry, cfg))


@pytest.mark.parametrize("name", HEADS)
def test_second_stage_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = ROI_HEADS_REGISTRY.get(name), config(("MODEL.ROI_HEADS.NAME", name))
    assert_same_weights(by_config(entry, cfg, SHAPES), by_constructor(entry, cfg, SHAPES))


@each_case
@each_aggregation
def test_trains(case: tuple[str, str], aggregation: str) -> None:
    cfg = config(case, aggregation)
    validate_config(cfg)
    whole_detector.check_gradients(cfg)


@each_case
@each_aggregation
def test_memory_equals_recomputing_everything(case: tuple[str, str], aggregation: str) -> None:
    whole_detector.check_memory_equals_recomputing(config(case, aggregation))


@each_case
def test_references_change_detections_where_it_says_that_it_aggregates(
    case: tuple[str, str],
) -> None:
    for aggregation in AGGREGATIONS:
        whole_detector.check_aggregates(config(case, aggregation))


@each_case
def test_a_batch_of_clips_equals_the_clips_one_by_one(case: tuple[str, str]) -> None:
    whole_detector.check_batch_equals_single_clips(config(case))


@each_case
def test_unreadable_references(case: tuple[str, str]) -> None:
    whole_detector.check_unreadable_references(config(case))


@each_case
def test_yaml_round_trip(case: tuple[str, str], tmp_path: Path) -> None:
    whole_detector.check_yaml_round_trip(config(case), tmp_path)


@each_case
def test_half_precision(case: tuple[str, str]) -> None:
    whole_detector.check_half_precision(config(case))
