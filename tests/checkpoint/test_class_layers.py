from __future__ import annotations

import pytest
import torch
from detectron2.data import MetadataCatalog

from clab_d2.checkpoint.class_layers import keep_by_name, names_in_file
from clab_d2.checkpoint.model_file import ModelCard

SCORE, BOX = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"


def layers(classes: int, value: float, stage: str = "") -> dict[str, torch.Tensor]:
    """Row k of a score layer is ``value + k``; rows of boxes have their fraction too."""
    score, box = (name.replace("predictor.", f"predictor.{stage}") for name in (SCORE, BOX))
    rows = value + torch.arange(classes + 1.0)
    boxes = (rows[:-1, None] + torch.arange(4) / 10).flatten()
    return {
        f"{score}.weight": rows[:, None].expand(-1, 2).clone(),
        f"{score}.bias": rows.clone(),
        f"{box}.weight": boxes[:, None].expand(-1, 2).clone(),
        f"{box}.bias": boxes.clone(),
    }


@pytest.mark.parametrize("stage", ["", "2."])
def test_rows_follow_their_class(stage: str) -> None:
    theirs, ours = ["cat", "Traffic-Light", "dog"], ["dog", "hat", "traffic light", "cat"]
    file = {**layers(3, 10, stage), "backbone.w": torch.zeros(1)}
    model = layers(4, 100, stage)
    weights, kept, new = keep_by_name(file, model, theirs, ours)
    assert (kept, new) == (["dog", "traffic light", "cat"], ["hat"])
    score, box = (name.replace("predictor.", f"predictor.{stage}") for name in (SCORE, BOX))
    for kind in ("weight", "bias"):
        rows = weights[f"{score}.{kind}"].view(5, -1)[:, 0]
        assert rows.tolist() == [12, 101, 11, 10, 13], "background is last"
        boxes = weights[f"{box}.{kind}"].view(16, -1)[:, 0]
        expected = [first + i / 10 for first in (12, 101, 11, 10) for i in range(4)]
        assert boxes.tolist() == pytest.approx(expected)
    assert weights["backbone.w"] is file["backbone.w"]
    assert model[f"{score}.bias"][0] == 100, "the model's own are left as they are"


def test_boxes_that_are_the_same_for_all_classes_stay() -> None:
    file, model = layers(3, 10), layers(2, 100)
    file[f"{BOX}.weight"], model[f"{BOX}.weight"] = torch.ones(4, 2), torch.zeros(4, 2)
    weights, _, _ = keep_by_name(file, model, ["a", "b", "c"], ["c", "d"])
    assert weights[f"{BOX}.weight"] is file[f"{BOX}.weight"]
    assert weights[f"{SCORE}.bias"].tolist() == [12, 101, 13]


def test_layers_of_other_widths_are_left_for_the_checkpointer_to_tell() -> None:
    file, model = layers(2, 10), layers(2, 100)
    file[f"{SCORE}.weight"] = torch.ones(3, 9)
    weights, _, _ = keep_by_name(file, model, ["a", "b"], ["b", "a"])
    assert weights[f"{SCORE}.weight"] is file[f"{SCORE}.weight"]


def test_whose_names_are_known() -> None:
    coco = MetadataCatalog.get("coco_2017_train").thing_classes
    zoo = {"__author__": "Detectron2 Model Zoo", "model": layers(80, 0)}
    assert names_in_file(zoo, None) == coco
    assert names_in_file({**zoo, "model": layers(80, 0, "0.")}, None) == coco
    assert names_in_file({**zoo, "model": layers(30, 0)}, None) is None
    assert names_in_file({**zoo, "__author__": "me"}, None) is None
    assert names_in_file(zoo, ModelCard({}, ["a", "b"])) == ["a", "b"]
