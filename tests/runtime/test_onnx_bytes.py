from __future__ import annotations

import numpy as np
import pytest

from clab_d2.errors import DataError
from clab_d2.runtime.onnx_bytes import refuse_external_data

onnx = pytest.importorskip("onnx")


def tensor(external: bool) -> onnx.TensorProto:
    made = onnx.numpy_helper.from_array(np.ones(3, np.float32), "weight")
    if external:
        made.ClearField("raw_data")
        made.data_location = onnx.TensorProto.EXTERNAL
        made.external_data.add(key="location", value="../../secret")
    return made


def model(initializer: onnx.TensorProto, constant: onnx.TensorProto) -> bytes:
    """With a weight, and a constant within a branch of an If."""
    number = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3])
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Constant", [], ["c"], value=constant)], "branch", [],
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [3])],
    )  # fmt: skip
    node = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    graph = onnx.helper.make_graph([node], "g", [number], [number], [initializer])
    return onnx.helper.make_model(graph).SerializeToString()


def test_values_in_the_file_itself_pass() -> None:
    refuse_external_data(model(tensor(False), tensor(False)), "m.onnx")


@pytest.mark.parametrize(("in_weight", "in_branch"), [(True, False), (False, True)])
def test_values_in_other_files_are_refused(in_weight: bool, in_branch: bool) -> None:
    with pytest.raises(DataError, match=r"m\.onnx: has values in other files"):
        refuse_external_data(model(tensor(in_weight), tensor(in_branch)), "m.onnx")


def test_what_is_no_model_is_told() -> None:
    whole = model(tensor(False), tensor(False))
    for content in (whole[:-9], b"\xff" * 40, b"PK\x03\x04 a zip file"):
        with pytest.raises(DataError, match="no ONNX model"):
            refuse_external_data(content, "m.onnx")
