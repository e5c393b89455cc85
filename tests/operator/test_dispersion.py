"""The index of dispersion: 1 for independent requests, and n for flocks of n."""

from collections.abc import Callable

import numpy as np
import pytest

from capstan_operator.decide.fleets.dispersion import Dispersion

LONG_PROMPT = 2000.0
"""E[I²]/E[I] of exponential lengths with a mean of 1000."""


def index_of(tokens_in: Callable[[float, float], float], seconds: Callable[[int], float], turns: int = 450) -> float:
    """After turns of `seconds(i)`, in which `tokens_in(start, end)` came."""
    told, now = Dispersion(), 0.0
    for i in range(turns):
        told = told.after(tokens_in(now, now + seconds(i)), seconds(i), LONG_PROMPT)
        now += seconds(i)
    return told.index


def flocks(size: int, rate: float, growth: float = 0.0, seed: int = 1) -> Callable[[float, float], float]:
    """`rate` requests a second, `size` of equal length at a time."""
    draw = np.random.default_rng(seed)

    def tokens_in(start: float, end: float) -> float:
        expected = (rate * (1 + growth * start)) * (end - start) / size
        return float(size * draw.exponential(1000, draw.poisson(expected)).sum())

    return tokens_in


@pytest.mark.parametrize("seconds", [lambda i: 2.0, lambda i: 1.0 + 2 * (i % 3)])
def test_independent_requests_have_an_index_of_one(seconds: Callable[[int], float]) -> None:
    assert index_of(flocks(1, 20.0), seconds) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("size", [4, 10])
def test_flocks_have_that_of_their_size(size: int) -> None:
    assert index_of(flocks(size, 40.0), lambda i: 2.0) == pytest.approx(size, rel=0.25)


def test_a_rate_that_grows_is_no_dispersion() -> None:
    assert index_of(flocks(1, 20.0, growth=0.01), lambda i: 2.0) < 1.25


def test_one_leap_weighs_no_more_than_a_turn() -> None:
    poisson = flocks(1, 20.0)
    leaping = index_of(lambda start, end: poisson(start, end) * (50 if start == 600 else 1), lambda i: 2.0)
    assert leaping < 4


def test_an_even_stream_promises_nothing() -> None:
    assert index_of(lambda start, end: 1000.0, lambda i: 2.0) == 1.0


def test_nothing_is_learnt_of_nothing() -> None:
    told = Dispersion().after(0.0, 2.0, LONG_PROMPT).after(0.0, 2.0, LONG_PROMPT)
    assert (told.turns, told.index) == (0.0, 1.0)
    assert told.after(5000.0, 0.0, LONG_PROMPT).index == 1.0


def test_it_forgets() -> None:
    told = Dispersion()
    wild, tame = flocks(20, 40.0), flocks(1, 40.0)
    for _ in range(300):
        told = told.after(wild(0, 2), 2.0, LONG_PROMPT)
    assert told.index > 12
    for _ in range(1200):
        told = told.after(tame(0, 2), 2.0, LONG_PROMPT)
    assert told.index < 1.5
    assert Dispersion.from_json(told.to_json()) == told
