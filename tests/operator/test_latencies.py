"""Latency quantiles of virtual fleets: counted with the misses, forgotten slowly, interpolated between bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.decide.curve import sizes
from capstan_operator.decide.fleets.bank import Bank
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.fleets.latencies import TOLD, TPOT_S, TTFT_S, Latencies
from capstan_operator.decide.fleets.queues import Arrived, Class, Engine

FLEETS = sizes(4)
TOLD_FLEETS = len(FLEETS[TOLD])
NONE_ABOVE = np.zeros((len(TPOT_S), TOLD_FLEETS))


def counted(ttft_s: list[float], kept: float = 1.0) -> Latencies:
    """Requests one after the other, alike in every fleet."""
    latencies = Latencies()
    for each in ttft_s:
        above = np.repeat((each > TTFT_S).astype(float)[:, None], TOLD_FLEETS, axis=1)
        latencies = latencies.after([1.0], above[None], NONE_ABOVE, kept)
    return latencies


@given(st.lists(st.floats(0.03, 60.0), min_size=5, max_size=60), st.sampled_from([0.9, 0.95, 0.99]))
def test_quantiles_are_within_a_bound_of_the_exact_ones(ttft_s: list[float], share: float) -> None:
    told = counted(ttft_s).of_ttft(0, FLEETS, 2.0, share)
    assert told is not None
    assert told.percentile == pytest.approx(100 * share)
    for quantile, part in ((told.median_s, 0.5), (told.tail_s, share)):
        # A part of the requests may lie exactly at the quantile: it is anything between its two neighbours.
        low, high = np.quantile(ttft_s, part, method="lower"), np.quantile(ttft_s, part, method="higher")
        assert low / 1.76 <= quantile <= high * 1.76
    assert told.median_s <= told.tail_s


def test_what_is_beyond_the_largest_bound_is_told_as_that_bound() -> None:
    told = counted([1e6] * 10).of_ttft(0, FLEETS, 1.0, 0.95)
    assert told is not None
    assert told.tail_s == TTFT_S[-1]


def test_without_requests_nothing_is_told() -> None:
    assert Latencies().of_ttft(0, FLEETS, 1.0, 0.95) is None
    assert Latencies().of_tpot(FLEETS, 1.0, 0.95) is None


def test_older_requests_weigh_less() -> None:
    told = counted([10.0] * 50 + [0.1] * 50, kept=0.9).of_ttft(0, FLEETS, 1.0, 0.95)
    assert told is not None
    assert told.tail_s < 0.3


def test_one_turn_in_five_seconds_is_counted_and_the_first_of_all() -> None:
    known = counted([1.0])
    assert sum(known.are_due(num_classes=1, seconds=1.0, now=1000.0 + i) for i in range(20)) == 4
    assert all(known.are_due(num_classes=1, seconds=7.0, now=1000.0 + 7 * i) for i in range(10))
    assert Latencies().are_due(num_classes=1, seconds=1.0, now=1001.0)
    assert known.are_due(num_classes=2, seconds=1.0, now=1001.0)


def test_another_number_of_fleets_begins_anew() -> None:
    other = sizes(40)
    num_told = len(other[TOLD])
    above = np.ones((1, len(TTFT_S), num_told))
    grown = counted([10.0] * 5).after([3.0], above, np.zeros((len(TPOT_S), num_told)), 1.0)
    assert grown.of_ttft(0, other, 4.0, 0.95) is not None


def run(rate: float, turns: int = 120) -> Bank:
    model = EngineModel(coefficients=(0.02, 6e-5, 4e-4, 0.0, 0.0), num_samples=1000)
    engine = Engine(
        model=model,
        token_s=6e-5,
        budget=800,
        full_s=float("inf"),
        kv_tokens=0,
        max_sequences=256,
        prompt=1000,
        long_prompt=1300,
        output=60,
        context=1030,
    )
    classes = [Class("chat", 0, 1.0, 0.08)]
    bank = Bank()
    for turn in range(turns):
        bank = bank.advanced(
            FLEETS,
            engine,
            classes,
            [Arrived(rate, 1000 * rate)],
            late=[rate],
            seconds=1.0,
            now=1000.0 + turn,
            span_s=600.0,
            running=20.0,
            num_ready=2,
        )
    return bank


def test_a_larger_fleet_is_never_slower_and_the_quantiles_agree_with_the_misses() -> None:
    bank = run(18.0)
    told = [bank.latencies.of_ttft(0, FLEETS, fleet, 0.95) for fleet in (1.0, 1.5, 2.0, 3.0, 4.0)]
    tails = [each.tail_s for each in told if each is not None]
    assert len(tails) == 5
    assert tails == sorted(tails, reverse=True)
    assert tails[0] > 2 * tails[-1]
    shares = bank.misses(len(FLEETS)).shares[0]
    for index in range(1, len(FLEETS) - 1):
        each = bank.latencies.of_ttft(0, FLEETS, float(FLEETS[index]), 0.95)
        assert each is not None
        if shares[index] < 0.02:
            assert each.tail_s < 1.0 * 1.3, "a fleet that misses less than the tail has it below the threshold"
        if shares[index] > 0.5:
            assert max(each.tail_s, 1.0) >= 0.7


def test_latencies_are_not_kept_over_a_restart() -> None:
    assert run(5.0, turns=5).durable().latencies == Latencies()
