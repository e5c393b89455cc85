"""Of those that are told to be late by chance, the share that really is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.decide.fleets.chance import Chance

late = st.floats(0, 1e15)


def after(*turns: tuple[float, float, float], seconds: float = 2.0) -> float:
    """The share after turns with (seen, least, most) late requests each."""
    chance = Chance()
    for turn in turns:
        chance = chance.after(*turn, seconds)
    return chance.share


def test_everybody_is_as_unlucky_as_told_until_something_else_was_seen() -> None:
    assert Chance().share == after((0, 0, 0)) == 1


def test_few_that_were_told_and_not_seen_prove_nothing() -> None:
    assert after((0, 0, 1)) > 0.9
    assert after((0, 0, 20)) == pytest.approx(0.5)
    assert after((0, 0, 60)) == pytest.approx(0.25)


def test_no_quiet_hour_makes_bad_luck_impossible() -> None:
    assert after((0, 0, 1e6)) == 0.2


def test_who_is_late_without_any_bad_luck_is_not_counted() -> None:
    assert after((100, 100, 120)) == after((0, 0, 20))


def test_more_than_was_told_are_not_by_chance() -> None:
    assert after((500, 10, 100)) == 1


def test_late_ones_that_end_long_after_they_were_told_count_in_full() -> None:
    told, ended = (0, 0, 50), (40, 0, 0)
    quiet = [(0.0, 0.0, 0.0)] * 30
    assert after(told, *quiet, ended) == pytest.approx(after((40, 0, 50)), abs=0.02)


def test_a_workload_that_changes_is_learnt_anew_within_hours() -> None:
    lucky, unlucky = [(0.0, 0.0, 1.0)] * 3600, [(1.0, 0.0, 1.0)] * 3600
    assert after(*lucky) == 0.2
    assert after(*lucky, *unlucky) > 0.9


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_share_is_found(share: float) -> None:
    draw = np.random.default_rng(3)
    turns = [(float(draw.poisson(share * told)), 0.0, told) for told in draw.uniform(0, 2, 1800)]
    assert after(*turns) == pytest.approx(share, abs=0.08)


@given(st.lists(st.tuples(late, late, late), max_size=20), st.floats(0, 1e6))
def test_it_is_a_share_whatever_was_counted(turns: list[tuple[float, float, float]], seconds: float) -> None:
    assert 0.2 <= after(*turns, seconds=seconds) <= 1
