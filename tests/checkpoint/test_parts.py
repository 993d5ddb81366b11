from __future__ import annotations

from clab_d2.checkpoint.parts import name_parts

OTHERS = ("backbone.res2.weight", "heads.box.fc1.weight")


def test_parts_are_as_large_as_can_be() -> None:
    names = ["backbone.res3.weight", "rpn.conv.weight", "rpn.conv.bias", "heads.box.fc2.weight"]
    assert name_parts(names, OTHERS) == "backbone.res3, rpn, heads.box.fc2"


def test_a_weight_beside_others_is_named_itself() -> None:
    assert name_parts(["heads.box.fc1.bias"], OTHERS) == "heads.box.fc1.bias"


def test_prefixes_are_whole_words() -> None:
    assert name_parts(["heads.box.fc10.weight", "head.weight"], OTHERS) == "heads.box.fc10, head"


def test_many_parts_are_counted() -> None:
    names = [f"part{index}.weight" for index in range(9)]
    assert name_parts(names, OTHERS, most=2) == "part0, part1, and 7 more"
    assert name_parts([], OTHERS) == ""
