"""Figures of a run, against values that can be worked out by hand."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_cli.measure import Outcome, Result, Spread, Thresholds, percentile, summarise


def outcome(result=Result.COMPLETED, ttft=0.1, tpot=0.02, tokens=11, slo_class=None, sent=0.0, **more):
    first = sent + ttft
    last = first + tpot * (tokens - 1)
    return Outcome(
        index=0,
        slo_class=slo_class,
        planned_s=sent,
        sent_s=sent,
        ended_s=last,
        result=result,
        first_token_s=first,
        last_token_s=last,
        output_tokens=tokens,
        **more,
    )


def test_tpot_is_the_mean_gap_after_the_first_token():
    assert outcome(ttft=0.5, tpot=0.03, tokens=4).tpot_s == pytest.approx(0.03)
    assert outcome(tokens=1).tpot_s is None


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60), st.integers(1, 99))
def test_percentiles_agree_with_the_standard_library(values, p):
    expected = statistics.quantiles(values, n=100, method="inclusive")[p - 1]
    assert percentile(sorted(values), p) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_spread_of_nothing_is_none_and_not_zero():
    assert Spread.of([None]).p95 is None


@pytest.mark.parametrize(
    ("thresholds", "ttft", "tpot", "tokens", "good"),
    [
        (Thresholds(100, 20), 0.0999, 0.0199, 11, True),
        (Thresholds(100, 20), 0.1001, 0.0199, 11, False),
        (Thresholds(100, 20), 0.0999, 0.0201, 11, False),
        (Thresholds(None, 20), 9.0, 0.0199, 11, True),
        (Thresholds(100, 20), 0.0999, 9.0, 1, True),
    ],
)
def test_good_means_within_both_thresholds(thresholds, ttft, tpot, tokens, good):
    assert thresholds.met_by(outcome(ttft=ttft, tpot=tpot, tokens=tokens)) is good


def test_attainment_counts_requests_that_were_refused_or_cut_as_not_good():
    outcomes = [
        outcome(),
        outcome(Result.REJECTED),
        outcome(Result.TRUNCATED),
        outcome(Result.LOST),
    ]
    summary = summarise(outcomes, {"default": Thresholds(1000, 1000)})
    assert summary.attainment_percent == 25.0
    assert (summary.accepted, summary.completed, summary.rejected) == (3, 1, 1)
    assert (summary.lost, summary.truncated, summary.failed) == (1, 1, 0)


def test_latencies_of_unfinished_requests_do_not_flatter_the_percentiles():
    summary = summarise([outcome(ttft=0.5), outcome(Result.TRUNCATED, ttft=0.001)], {})
    assert summary.classes[0].ttft_ms.p50 == pytest.approx(500)


def test_a_declared_class_without_requests_is_shown_with_none():
    (batch,) = [c for c in summarise([outcome(slo_class="a")], {"batch": Thresholds()}).classes if c.name == "batch"]
    assert batch.requests == 0
    assert batch.attainment_percent is None


def test_goodput_is_good_requests_over_the_run():
    outcomes = [outcome(sent=float(i), ttft=0.1 if i % 2 else 5.0, tokens=1) for i in range(10)]
    summary = summarise(outcomes, {}, Thresholds(ttft_ms=1000))
    assert summary.seconds == pytest.approx(13.0)  # the eighth request has its token at 8 + 5
    assert summary.goodput_per_s == pytest.approx(5 / 13, abs=1e-3)


def test_the_generators_own_lateness_is_reported_apart():
    late = Outcome(0, None, planned_s=1.0, sent_s=1.25, ended_s=2.0, result=Result.COMPLETED, first_token_s=1.5)
    assert late.ttft_s == pytest.approx(0.25)
    assert summarise([late], {}).lateness_ms.max == pytest.approx(250)


def test_prompt_lengths_are_checked_against_what_the_server_counted():
    outcomes = [outcome(wanted_prompt_tokens=100, prompt_tokens=97), outcome(wanted_prompt_tokens=5, prompt_tokens=5)]
    assert summarise(outcomes, {}).prompt_tokens_off_by_max == 3


def test_a_request_that_names_no_class_counts_under_the_first_declared_one():
    summary = summarise([outcome(), outcome(slo_class="batch")], {"interactive": Thresholds(), "batch": Thresholds()})
    assert [(c.name, c.requests) for c in summary.classes] == [("interactive", 1), ("batch", 1)]
