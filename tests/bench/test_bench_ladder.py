"""The search of the online bench finds the greatest rate that holds, and no other."""

from hypothesis import example, given
from hypothesis import strategies as st
from ladder import Search, rate, rung


@given(limit=st.integers(-45, 80), first=st.integers(-45, 80))
@example(limit=-40, first=60)
@example(limit=-39, first=-40)
def test_the_greatest_rung_that_holds_is_found(limit: int, first: int) -> None:
    lowest, tried = -40, []
    search = Search(first, lowest)
    while (number := search.next) is not None:
        assert number not in tried
        assert number >= lowest
        tried.append(number)
        search.learn(number <= limit)
    assert search.best == (limit if limit >= lowest else None)


@given(first=st.integers(-20, 60), away=st.integers(-12, 12))
def test_a_good_guess_takes_few_runs(first: int, away: int) -> None:
    """A run takes half a minute: 12 rungs, a factor of 2.5, are found in eight."""
    search, runs = Search(first, -40), 0
    while (number := search.next) is not None:
        search.learn(number <= first + away)
        runs += 1
    assert runs <= 8


@given(st.floats(0.05, 1000))
def test_a_rung_is_the_nearest_one_below(per_s: float) -> None:
    number = rung(per_s)
    assert rate(number) <= per_s * (1 + 1e-9)
    assert rate(number + 1) > per_s * (1 - 1e-9)
