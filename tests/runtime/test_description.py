from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clab_d2.data.reference_frames import ReferenceFrames
from clab_d2.errors import DataError
from clab_d2.runtime.description import Description
from clab_d2.runtime.preprocessing import Preprocessing


def description() -> Description:
    return Description(
        class_names=("cat", "dog"),
        preprocessing=Preprocessing(
            "RGB", "opencv", 64, 96, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 16, (64, 96)
        ),
        sampling=ReferenceFrames("adaptive", 14),
        own=("boxes", "valid"),
        references={"rows_c5": 0, "encoded_0_0": 1},
        score_threshold=0.05,
        nms_threshold=0.5,
        max_detections=100,
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    description().save(tmp_path)
    assert Description.load(tmp_path) == description()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", "not written by tools/export_model.py"),
        ("version", 2, "of version 2"),
        ("class_names", "cat", "class_names is 'cat'"),
        ("own", [1], "own is"),
        ("own", ["../../etc/passwd"], None),  # a name of an output; no graph has it
        ("references", {"rows": -1}, "rows is '-1'"),
        ("references", [], "references is"),
        ("score_threshold", "0.5", "score_threshold is '0.5'"),
        ("score_threshold", float("nan"), "score_threshold is 'nan'"),
        ("max_detections", True, "max_detections is 'True'"),
        ("max_detections", 1e300, "max_detections is"),
        ("sampling", {"sampling": "random", "num": 1, "stride": 1}, "sampling is 'random'"),
        ("sampling", {"sampling": "causal", "num": 0, "stride": 1}, "num is '0'"),
        ("preprocessing", {}, "pixel_mean is 'None'"),
        ("precision", "int4", "precision is 'int4'"),
    ],
)
def test_what_no_export_writes_is_refused(
    tmp_path: Path, key: str, value: Any, message: str | None
) -> None:
    description().save(tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    if message is None:
        Description.load(tmp_path)
        return
    with pytest.raises(DataError) as error:
        Description.load(tmp_path)
    assert message in str(error.value) and str(path) in str(error.value)
