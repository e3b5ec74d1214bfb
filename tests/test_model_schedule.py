"""beta over a run: where it starts, where it arrives, that it never turns back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.schedule import BetaSettings, RatioSchedule, beta_at, largest_ratio, ratio_at


def betas(total: int, **settings: object) -> list[float]:
    return [beta_at(BetaSettings(**settings), step, total) for step in range(total)]


def test_a_constant_schedule_is_at_its_end_from_the_first_step():
    assert betas(3, start=0.2, end=0.7) == [0.7, 0.7, 0.7]


def test_a_linear_schedule_rises_by_equal_steps():
    assert betas(8, schedule="linear", fraction=0.625) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_a_cosine_schedule_is_half_way_in_the_middle_and_slow_at_both_ends():
    first, second, middle, *_, last = betas(5, schedule="cosine", fraction=1.0, start=0.2, end=0.8)
    assert (first, last) == (0.2, 0.8) and middle == pytest.approx(0.5)
    assert second - first < 0.6 / 4


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.integers(1, 50),
)
def test_every_schedule_stays_between_its_ends_and_arrives(schedule, start, end, fraction, total):
    values = betas(total, schedule=schedule, start=start, end=end, fraction=fraction)
    assert all(min(start, end) - 1e-12 <= value <= max(start, end) + 1e-12 for value in values)
    assert values[-1] == end
    assert values == sorted(values, reverse=end < start)


@pytest.mark.parametrize("bad", [{"end": 1.5}, {"start": -0.1}, {"fraction": 0.0}, {"schedule": "sine"}])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ValidationError):
        BetaSettings(**bad)


def test_a_ratio_is_its_own_unless_a_schedule_leads_there():
    constant, falling = RatioSchedule(), RatioSchedule(schedule="linear", start=0.5, fraction=1.0)
    assert [ratio_at(0.3, constant, step, 3) for step in range(3)] == [0.3] * 3
    assert [ratio_at(0.1, falling, step, 3) for step in range(3)] == [0.5, pytest.approx(0.3), 0.1]
    rising = RatioSchedule(schedule="cosine", start=0.01, fraction=0.5)
    assert [ratio_at(1.0, rising, step, 4) for step in range(4)] == [0.01, 1.0, 1.0, 1.0]


def test_the_largest_ratio_is_at_either_end():
    assert largest_ratio(0.3, RatioSchedule(start=0.9)) == 0.3, "constant: its start is unused"
    assert largest_ratio(0.3, RatioSchedule(schedule="linear", start=0.9)) == 0.9
    assert largest_ratio(0.3, RatioSchedule(schedule="cosine", start=0.1)) == 0.3


@pytest.mark.parametrize("bad", [{"start": 0.0}, {"start": 1.1}, {"fraction": 0.0}, {"end": 0.5}])
def test_an_impossible_schedule_of_a_ratio_is_refused(bad):
    with pytest.raises(ValidationError):
        RatioSchedule(**bad)
