from __future__ import annotations

import numpy as np
import pytest

from clab_d2.runtime.instances import ArrayBoxes, ArrayInstances


def three() -> ArrayInstances:
    return ArrayInstances(
        (10, 20),
        pred_boxes=ArrayBoxes(np.arange(12).reshape(3, 4)),
        scores=np.array([0.9, 0.5, 0.1]),
        pred_classes=np.array([2, 0, 1]),
    )


def test_fields_go_along_with_rows() -> None:
    chosen = three()[three().scores >= 0.5]
    assert len(chosen) == 2 and chosen.image_size == (10, 20)
    assert chosen.pred_classes.tolist() == [2, 0]
    assert chosen.pred_boxes.tensor.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert three()[np.array([2, 0])].scores.tolist() == [0.1, 0.9]
    assert three()[1].scores.tolist() == [0.5]
    assert three().pred_boxes.area().tolist() == [4, 4, 4]
    assert len(ArrayInstances((1, 1))) == 0


def test_fields_are_attributes() -> None:
    instances = three()
    assert not instances.has("track_ids")
    with pytest.raises(AttributeError, match="no field 'track_ids'"):
        _ = instances.track_ids
    instances.track_ids = np.array([1, -1, 2])
    assert instances.has("track_ids") and instances[:1].track_ids.tolist() == [1]
    with pytest.raises(ValueError, match="2 items, where there are 3"):
        instances.more = np.zeros(2)
