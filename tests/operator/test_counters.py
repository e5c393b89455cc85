"""Counters and histograms: differences, sums, quantiles, and what is not believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import counters

from capstan_operator.decide.seen.counters import ClassCounters, Histogram, believable


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    latencies = Histogram(bounds=(1.0, 2.0, 4.0), counts=(10.0, 30.0, 40.0, 40.0))
    assert latencies.quantile(0.25) == pytest.approx(1.0)
    assert latencies.quantile(0.5) == pytest.approx(1.5)
    assert latencies.quantile(0.875) == pytest.approx(3.0)
    assert Histogram().quantile(0.5) is None


def test_what_is_above_the_last_bound_is_told_as_that_bound() -> None:
    assert Histogram(bounds=(1.0, 2.0), counts=(0.0, 0.0, 5.0)).quantile(0.95) == 2.0


def test_a_reset_or_other_bounds_give_no_difference() -> None:
    before = Histogram(bounds=(1.0, 2.0), counts=(5.0, 6.0, 7.0))
    assert before.minus(Histogram(bounds=(1.0, 2.0), counts=(1.0, 1.0, 1.0))) == Histogram(
        bounds=(1.0, 2.0), counts=(4.0, 5.0, 6.0)
    )
    assert Histogram(bounds=(1.0, 2.0), counts=(0.0, 0.0, 1.0)).minus(before) is None
    assert Histogram(bounds=(1.0, 3.0), counts=(9.0, 9.0, 9.0)).minus(before) is None
    only_the_histogram = counters(8).changed(ttft=counters(2).ttft)
    assert only_the_histogram.minus(counters(4)) is None


def test_a_threshold_that_changes_costs_one_look_and_is_never_taken_for_traffic() -> None:
    """The gateway's counters go on, while the histogram with the new bound starts from zero."""
    before, after = counters(1000), counters(1003)
    other = Histogram(bounds=(*after.ttft.bounds, after.ttft.bounds[-1] + 1), counts=(*after.ttft.counts, 0.0))
    empty = other.changed(counts=(0.0,) * len(other.counts))
    changed = after.changed(ttft=empty)
    assert changed.minus(before) is None
    later = counters(1008).changed(ttft=empty)
    difference = later.minus(changed)
    assert difference is not None
    assert difference.arrived == counters(1008).arrived - after.arrived


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_difference_added_again_gives_the_later_counters(earlier: int, more: int) -> None:
    before, after = counters(earlier), counters(earlier + more)
    difference = after.minus(before)
    assert difference is not None
    assert before.plus(difference) == after
    assert after.minus(after) == ClassCounters(
        ttft=Histogram(bounds=after.ttft.bounds, counts=(0.0,) * len(after.ttft.counts)),
        tpot=Histogram(bounds=after.tpot.bounds, counts=(0.0,) * len(after.tpot.counts)),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1e16])
def test_some_numbers_are_not_believed(value: float) -> None:
    assert not believable(1.0, value)
    assert not Histogram(bounds=(1.0,), counts=(0.0, value)).is_believable


@pytest.mark.parametrize(
    "broken",
    [
        Histogram(bounds=(1.0,), counts=(2.0, 1.0)),
        Histogram(bounds=(2.0, 1.0), counts=(0.0, 0.0, 0.0)),
        Histogram(bounds=(1.0,), counts=(1.0,)),
    ],
    ids=["falling", "unordered", "too short"],
)
def test_a_broken_histogram_is_not_believed(broken: Histogram) -> None:
    assert not broken.is_believable
