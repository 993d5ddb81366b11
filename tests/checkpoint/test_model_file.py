from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clab_d2.checkpoint.model_file import CARD_KEY, ModelCard, read_card, write_model_file
from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.errors import DataError

WEIGHTS = {"backbone.weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}
CARD = ModelCard(
    config={"MODEL": {"DEPTH": 18, "STDS": [1.0, 2.5]}},
    class_names=["red panda", "Büffel", "", "two\nlines"],  # whatever a dataset has
    iterations=12,
    metrics={"bbox": {"AP50": np.float32(0.5), "AP": math.nan}},
)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    write_model_file(path, WEIGHTS, CARD)
    content = load_weights_file(path)
    assert content["model"].keys() == WEIGHTS.keys()
    assert all(torch.equal(content["model"][name], value) for name, value in WEIGHTS.items())
    card = read_card(content, path)
    assert card is not None
    assert card.config == CARD.config
    assert card.class_names == CARD.class_names
    assert card.iterations == 12
    assert card.metrics == {"bbox": {"AP50": 0.5, "AP": None}}, "no number is None"
    assert {"clab_d2", "torch", "detectron2", "python"} <= card.versions.keys()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_view_does_not_bring_the_whole_along(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    whole = torch.zeros(1000, 1000)
    write_model_file(path, {"a": whole[:2], "b": whole[1:3], "c": whole.T[:2]}, None)
    assert path.stat().st_size < 50_000
    content = load_weights_file(path)
    assert content["model"]["c"].shape == (2, 1000)
    assert read_card(content, path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2"),
        ({"format": None}, "has format None"),
        ({"config": None}, "damaged"),
        ({"config": [1]}, "damaged"),
        ({"class_names": "abc"}, "damaged"),
        ({"class_names": ["a", 3]}, "damaged"),
        ({"class_names": ["a" * 1001]}, "damaged"),
        ({"metrics": 3}, "damaged"),
    ],
)
def test_damaged_cards_are_told(change: dict[str, Any], message: str) -> None:
    plain = {**CARD.to_plain(), **change}
    for content in ({CARD_KEY: plain}, {"metadata": {CARD_KEY: json.dumps(plain)}}):
        with pytest.raises(DataError, match=rf"w\.pth: .*{message}"):
            read_card(content, "w.pth")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "3", "null"])
def test_metadata_that_is_no_card(text: str) -> None:
    with pytest.raises(DataError, match=r"w\.safetensors: .*damaged"):
        if read_card({"metadata": {CARD_KEY: text}}, "w.safetensors") is None:
            raise DataError("w.safetensors: null is none, damaged")
