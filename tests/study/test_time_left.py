from __future__ import annotations

import pytest

from clab_d2.study.time_left import Going, duration_text, expected_seconds, seconds_left


def test_measured_times_come_before_declared_ones() -> None:
    finished = [("training", 100.0), ("training", 200.0)]
    assert expected_seconds(finished, {"training": 1, "evaluation": 0.5}) == {
        "training": 150,
        "evaluation": 1800,
    }


def test_seconds_left_are_shared_by_the_slots() -> None:
    expected = {"training": 100.0, "evaluation": 10.0}
    going = [Going("training", 30, 0.25), Going("evaluation", 4, None)]
    # 2 trainings; 90 of the 120 that the first takes by what is done of it; 6 of the evaluation
    left = seconds_left(expected, ["training", "training"], going, 2)
    assert left == pytest.approx((200 + 90 + 6) / 2)
    assert seconds_left(expected, ["evaluation"], [], 4) == 10, "one run can't be split"


def test_the_first_run_tells_by_how_far_it_is() -> None:
    assert seconds_left({}, ["training"], [Going("training", 30, 0.25)], 1) == 120 + 90
    assert seconds_left({}, ["training"], [], 1) is None
    assert seconds_left({}, [], [], 1) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "an unknown time"), (12, "12 s"), (150, "2.5 min"), (5400, "1.5 h")],
)
def test_durations_for_people(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text
