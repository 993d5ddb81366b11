"""From a file to a file: what is told of it, what is refused, and what is written."""

from __future__ import annotations

import hashlib

import pytest
import torch
from their_weights import detector_state, resnet_state

from clab_d2.checkpoint.convert import (
    Options,
    check_fits,
    convert,
    convert_file,
    read_class_order,
)
from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.config import get_clab_cfg
from clab_d2.data.catalog import register_datasets_from_config
from clab_d2.data.imagenet_vid import IMAGENET_VID_CLASSES
from clab_d2.errors import DataError

SCORES = "roi_heads.box_predictor.cls_score.weight"


def shapes_of(result) -> dict[str, tuple[int, ...]]:
    """A model that the conversion fits exactly."""
    return {name: tuple(value.shape) for name, value in result.weights.items()}


def test_the_file_is_what_detectron2_loads(tmp_path):
    source, target = tmp_path / "theirs.pth", tmp_path / "new" / "ours.pth"
    state = detector_state()
    torch.save({"state_dict": state, "meta": {"epoch": 7}, "optimizer": {}}, source)
    result = convert_file(source, target)
    content = load_weights_file(target)
    assert content["matching_heuristics"] is False
    assert content["source"] == {
        "kind": result.kind,
        "file": "theirs.pth",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "classes": None,
    }
    assert set(content["model"]) == set(result.weights)
    neck = "detector.neck.convs.0.conv.weight"
    assert torch.equal(content["model"]["backbone.neck.weight"], state[neck])
    assert "left out beside the weights: meta, optimizer" in result.notes
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("data_parallel", [False, True])
def test_state_dicts_are_found_however_they_were_saved(wrap, data_parallel):
    state = detector_state()
    expected = convert({"state_dict": state}).weights
    if data_parallel:
        state = {f"module.{key}": value for key, value in state.items()}
    weights = convert(wrap(state)).weights
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_anchor_ratios_come_from_option_config_and_default_in_this_order():
    content = {"state_dict": detector_state(num_scales=2, num_ratios=6)}
    bias = content["state_dict"]["detector.rpn_head.rpn_cls.bias"]

    def order(cfg=None, **options) -> list[int]:
        weights = convert(content, cfg, Options(**options)).weights
        ours = weights["proposal_generator.rpn_head.objectness_logits.bias"]
        return [bias.tolist().index(value) for value in ours.tolist()]

    cfg = get_clab_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.25, 0.5, 0.7, 1.0, 2.0, 4.0]]
    assert order() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert order(cfg) == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    assert order(cfg, num_ratios=2) == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]


def test_imagenet_vid_classes_in_another_order_are_put_right():
    theirs = tuple(reversed(IMAGENET_VID_CLASSES))
    state = detector_state(num_classes=30)
    rows = state["detector.roi_head.bbox_head.fc_cls.weight"]
    expected = torch.cat([rows[:30].flip(0), rows[30:]])
    for meta in ({"CLASSES": theirs}, {"dataset_meta": {"classes": theirs}}):
        result = convert({"state_dict": state, "meta": meta})
        assert torch.equal(result.weights[SCORES], expected)
        assert result.classes == IMAGENET_VID_CLASSES
    result = convert({"state_dict": state, "meta": {}}, options=Options(class_order=theirs))
    assert torch.equal(result.weights[SCORES], expected)
    # The option speaks louder than the file.
    content = {"state_dict": state, "meta": {"CLASSES": theirs}}
    result = convert(content, options=Options(class_order=IMAGENET_VID_CLASSES))
    assert torch.equal(result.weights[SCORES], rows)
    assert torch.equal(convert({"state_dict": state}).weights[SCORES], rows)


def test_classes_of_a_config_s_own_dataset(tmp_path):
    annotations = tmp_path / "mine.json"
    annotations.write_text(
        '{"categories": [{"id": 4, "name": "fox"}, {"id": 9, "name": "car"}, '
        '{"id": 10, "name": "bus"}], "images": [{}], "annotations": []}'
    )
    cfg = get_clab_cfg()
    cfg.DATASETS.VID = [["converted_mine", str(annotations), str(tmp_path)]]
    cfg.DATASETS.TEST = ("converted_mine",)
    register_datasets_from_config(cfg)
    content = {
        "state_dict": detector_state(num_classes=3),
        "meta": {"CLASSES": ["bus", "car", "fox"]},
    }
    rows = content["state_dict"]["detector.roi_head.bbox_head.fc_cls.weight"]
    result = convert(content, cfg)
    assert torch.equal(result.weights[SCORES], rows[[2, 1, 0, 3]])
    assert result.classes == ("fox", "car", "bus")
    # Without the config nothing says that another order is wanted.
    unchanged = convert(content)
    assert torch.equal(unchanged.weights[SCORES], rows)
    assert unchanged.classes == ("bus", "car", "fox")
    with pytest.raises(DataError, match="give --config-file"):
        convert(content, options=Options(class_order=("bus", "car", "fox")))

    content["meta"]["CLASSES"] = ["bus", "car", "dog"]
    with pytest.raises(DataError, match="'fox' is not one of the checkpoint's"):
        convert(content, cfg)
    without = convert(content, cfg, Options(new_classes=True))
    assert not any("box_predictor" in name for name in without.weights)
    assert read_class_order(str(annotations)) == ("fox", "car", "bus")


def test_class_orders_are_read_from_names_and_files(tmp_path):
    assert read_class_order("bus, red panda,fox") == ("bus", "red panda", "fox")
    names = tmp_path / "names.txt"
    names.write_text("bus\nred panda\n\nfox\n")
    assert read_class_order(str(names)) == ("bus", "red panda", "fox")
    with pytest.raises(DataError, match="names no class"):
        read_class_order(" , ")
    with pytest.raises(DataError, match=r"none\.json"):
        read_class_order(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("key", "shape", "remedy"),
    [
        (
            "backbone.bottom_up.res2.0.conv1.weight",
            (8, 4, 1, 1),
            r"MODEL\.RESNETS\.WIDTH_PER_GROUP 4",
        ),
        ("backbone.neck.weight", (64, 128, 3, 3), r"MODEL\.NECK\.OUT_CHANNELS"),
        ("proposal_generator.rpn_head.objectness_logits.weight", (15, 8, 1, 1), "ANCHOR_GENERATOR"),
        ("roi_heads.box_head.fc1.weight", (16, 72), r"POOLER_RESOLUTION"),
        ("roi_heads.box_predictor.cls_score.weight", (9, 16), r"NUM_CLASSES.*--new-classes"),
        ("contrastive_branch.loss.embedding.conv.weight", (12, 8, 3, 3), r"MODEL\.CONTRASTIVE"),
    ],
)
def test_another_shape_than_the_config_s_is_refused(key, shape, remedy):
    result = convert({"state_dict": detector_state()})
    found = tuple(result.weights[key].shape)
    with pytest.raises(DataError, match=remedy) as error:
        check_fits(result, {**shapes_of(result), key: shape})
    message = str(error.value)
    assert message.startswith(f"{key} has shape {found} and the config wants {shape}: ")
    assert "\n" not in message


def test_weights_that_the_model_lacks_or_wants_are_refused():
    result = convert({"state_dict": detector_state()})
    wanted = shapes_of(result)
    assert (
        check_fits(result, {**wanted, "pixel_mean": (3, 1, 1), "x.num_batches_tracked": ()}) == []
    )
    with pytest.raises(
        DataError, match=r"fc3\.weight, of shape \(16, 16\).*is not in the check"
    ):
        check_fits(result, {**wanted, "roi_heads.box_head.fc3.weight": (16, 16)})
    # A checkpoint with one more FC would load, and be silently wrong.
    fewer = {name: shape for name, shape in wanted.items() if "fc2." not in name}
    with pytest.raises(DataError, match=r"fc2\.weight.*has no place in the config's model"):
        check_fits(result, fewer)
    with pytest.raises(DataError, match="is no ResNet with a neck"):
        check_fits(result, {"backbone.simple.weight": (1,)})


def test_parts_that_a_config_switches_off_or_adds_are_noted():
    result = convert({"state_dict": detector_state()})
    wanted = shapes_of(result)
    plain = {
        name: shape
        for name, shape in wanted.items()
        if not name.startswith(("contrastive_branch.", "roi_heads.roi_aggregation."))
    }
    assert check_fits(result, plain) == [
        "in the file, but not used by this config: contrastive_branch, roi_heads.roi_aggregation"
    ]
    without_branch = convert({"state_dict": detector_state(contrastive=False)})
    assert check_fits(without_branch, wanted) == [
        "start from scratch, not being in the file: contrastive_branch"
    ]
    selsa = convert({"state_dict": detector_state(temporal_roi_align=False)})
    with pytest.raises(DataError, match=r"roi_aggregation\.embed\.weight.*not in the check"):
        check_fits(selsa, wanted)
    new_classes = convert({"state_dict": detector_state()}, options=Options(new_classes=True))
    assert check_fits(new_classes, {**wanted, SCORES: (8, 16)}) == [
        "start from scratch, not being in the file: roi_heads.box_predictor"
    ]


def test_imagenet_weights_must_fill_the_backbone_and_no_more():
    result = convert(resnet_state(blocks=(2, 1, 1, 1)))
    wanted = {**shapes_of(result), "roi_heads.box_head.fc1.weight": (2, 2)}
    assert check_fits(result, wanted) == [
        "start from scratch, not being in the file: roi_heads.box_head"
    ]
    deeper = {**wanted, "backbone.bottom_up.res3.1.conv1.weight": (8, 32, 1, 1)}
    with pytest.raises(DataError, match=r"res3\.1\.conv1.*not in the checkpoint.*NUM_GROUPS 1"):
        check_fits(result, deeper)
    shallower = {name: shape for name, shape in wanted.items() if "res2.1." not in name}
    with pytest.raises(DataError, match=r"res2\.1\.conv1\.weight.*has no place"):
        check_fits(result, shallower)
    without_res5 = {name: shape for name, shape in wanted.items() if "res5" not in name}
    assert check_fits(result, without_res5)[1] == (
        "in the file, but not used by this config: backbone.bottom_up.res5"
    )


def test_what_cannot_be_converted_is_named(tmp_path):
    def message(content, name="bad.pth") -> str:
        path = tmp_path / name
        torch.save(content, path)
        with pytest.raises(DataError) as error:
            convert_file(path, tmp_path / "out.pth")
        assert not (tmp_path / "out.pth").exists()
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
        return str(error.value)

    ours = convert({"state_dict": detector_state()}).weights
    assert "Detectron2's own names already" in message({"model": ours})
    assert "neither an MMTracking" in message({"encoder.weight": torch.ones(1)})
    assert "does not hold a dict of weights ('epoch' is a int)" in message({"epoch": 3})
    assert "it is empty" in message({"state_dict": {}})
    broken = detector_state()
    broken["detector.neck.convs.0.conv.bias"][2] = float("nan")
    assert "backbone.neck.bias holds NaN" in message({"state_dict": broken})


def test_output_files_that_would_not_load_or_would_overwrite_are_refused(tmp_path):
    source = tmp_path / "weights.pth"
    torch.save({"state_dict": detector_state()}, source)
    before = source.read_bytes()
    with pytest.raises(DataError, match=r"name it \.pth"):
        convert_file(source, tmp_path / "out.pkl")
    with pytest.raises(DataError, match="is the file to convert"):
        convert_file(source, source)
    assert source.read_bytes() == before
