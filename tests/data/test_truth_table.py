"""The truth of every frame, as it was given."""

from __future__ import annotations

from clab_d2.data.truth_table import TruthTable

# Next to each other, and the last that 64 bits hold.
LARGE = (2**53, 2**53 + 1, 2**63 - 1)


def test_identities_are_exact() -> None:
    objects = [(7, 1, [1.0, 2.0, 3.0, 4.0], 5, track, False) for track in LARGE]
    table = TruthTable({7: [True, True]}, objects)
    assert [a["instance_id"] for a in table.annotations(7, 1)] == list(LARGE)
    assert table.annotations(7, 0) == []


def test_frames_are_found_whatever_the_order_of_objects() -> None:
    objects = [
        (4, 1, [1.0, 2.0, 3.0, 4.0], 0, 8, False),
        (3, 0, [5.5, 6.0, 7.0, 8.0], 1, -1, True),
        (4, 1, [9.0, 9.0, 2.0, 2.0], 2, 6, False),
    ]
    table = TruthTable({3: [True], 4: [False, True]}, objects)
    assert [a["instance_id"] for a in table.annotations(4, 1)] == [8, 6]
    assert table.annotations(4, 0) is None, "not annotated"
    (crowd,) = table.annotations(3, 0)
    assert (crowd["bbox"], crowd["category_id"]) == ([5.5, 6.0, 7.0, 8.0], 1)
    assert (crowd["instance_id"], crowd["iscrowd"]) == (-1, 1)


def test_no_object_at_all() -> None:
    assert TruthTable({1: [True, False]}, []).annotations(1, 0) == []
