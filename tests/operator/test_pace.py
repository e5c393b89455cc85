"""How the interval between turns follows the processor time that the process uses."""

from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.pace import Pace


def test_a_process_below_its_share_turns_as_often_as_it_was_told() -> None:
    pace = Pace(1.0, 0.5)
    pace.used(0.4, 1.0)
    assert pace.interval_s == 1.0


def test_turns_become_rarer_at_once_and_more_frequent_slowly() -> None:
    pace = Pace(1.0, 0.5)
    pace.used(1.0, 1.0)
    assert pace.interval_s == 2.0
    pace.used(0.0, 1.0)
    assert pace.interval_s == 1.6


@given(st.floats(0.0005, 5))
def test_the_load_of_many_loops_settles_at_the_share(cost_s: float) -> None:
    """`cost_s` is what all loops together use for one turn each."""
    pace = Pace(1.0, 0.5)
    for _ in range(60):
        pace.used(cost_s / pace.interval_s, 1.0)
    assert cost_s / pace.interval_s <= 0.51 or pace.interval_s == 60
    assert pace.interval_s == 1.0 or cost_s / pace.interval_s > 0.35


@given(st.lists(st.floats(0, 100), max_size=50))
def test_the_interval_stays_within_its_bounds(loads: list[float]) -> None:
    pace = Pace(1.0, 0.5, longest_s=30)
    for load in loads:
        pace.used(load, 1.0)
        assert 1.0 <= pace.interval_s <= 30.0
