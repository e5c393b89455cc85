"""The fast loop: rungs, margins, and what moves them."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from worlds import NOW, STEP_COSTS, samples

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.scaling import BatchLimitsPolicy
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.limits.batch_limits import Advice, adjust
from capstan_operator.decide.limits.ladder import ladder, move
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.limits.situation import Situation, Target
from capstan_operator.decide.limits.trials import Fleet
from capstan_operator.decide.seen.signals import Lengths, Signals
from capstan_operator.decide.seen.tracks import Tracks

ENVELOPE = Envelope(min_sequences=4, max_sequences=32, min_batched_tokens=64, max_batched_tokens=1024)
POLICY = BatchLimitsPolicy(adjustment_interval_seconds=3, max_step_percent=25)
MODEL = EngineModel().learn(samples(200))
ALONE = Fleet(replicas=(), tracks=Tracks(), max_age_s=10.0, answer_s=3.0, allowed=0.05)
"""Nobody to try anything on."""


def situation(
    *,
    sequences: float = 8,
    backlog: float = 0,
    late: float | None = None,
    threshold_s: float | None = 0.06,
    **fields: Any,
) -> Situation:
    """A turn of 3 s in which 50 answers ended; `late` is in units of what may be late."""
    target = None
    if threshold_s is not None:
        target = Target(threshold_s=threshold_s, ended=0 if late is None else 50, late=50 * (late or 0))
    signals = Signals(
        window_s=10,
        gateway_seen=True,
        complete=True,
        prefill_backlog=backlog,
        decode_sequences=sequences,
        context_tokens=sequences * 225,
    )
    fields = {"kv_tokens": 65536, "lengths": Lengths(prompt=200, output=50, weight=100), **fields}
    return Situation(
        model=MODEL, signals=signals, target=target, token_s=STEP_COSTS[1], ttft_s=1.0, seconds=3, **fields
    )


def settled(of: Situation, memory: LimitsMemory | None = None, turns: int = 60) -> LimitsMemory:
    memory = memory or LimitsMemory(adjusted_at=NOW)
    for _ in range(turns):
        memory = adjust(memory, of, ALONE, ENVELOPE, POLICY, (memory.adjusted_at or NOW) + 3).memory
    return memory


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 100))
def test_a_ladder_falls_from_top_to_bottom_in_steps_of_at_most_the_percentage(a: int, b: int, percent: int) -> None:
    top, bottom = max(a, b), min(a, b)
    rungs = ladder(top, bottom, percent)
    assert (rungs[0], rungs[-1]) == (top, bottom)
    for above, below in pairwise(rungs):
        # Whole numbers: one apart is the least there is, and rounding is half a unit.
        assert above - below == 1 or above <= (below + 0.5) * (1 + percent / 100)


@given(st.floats(0, 3000), st.integers(5, 100))
def test_a_steady_ideal_is_reached_and_then_left_alone(ideal: float, percent: int) -> None:
    rungs = ladder(1024, 64, percent)
    at = 1024
    for _ in range(len(rungs) + 1):
        at = move(at, ideal, rungs, percent)
    assert move(at, ideal, rungs, percent) == at
    assert at == 64 or at * (1 - 0.09) <= ideal


@given(st.floats(70, 1000), st.lists(st.floats(-0.03, 0.03), min_size=20, max_size=20))
def test_noise_within_the_margin_moves_nothing_to_and_fro(ideal: float, noise: list[float]) -> None:
    rungs, at, moved = ladder(1024, 64, 25), 1024, []
    for i in range(40):
        new = move(at, ideal * (1 + noise[i % 20]), rungs, 25)
        moved += [new - at] if new != at else []
        at = new
    assert all(m < 0 for m in moved)


def test_the_budget_settles_where_a_full_step_fits_the_threshold() -> None:
    limits = settled(situation(sequences=10)).limits
    assert limits is not None
    a, b, c, _, _ = STEP_COSTS
    full_s = a + 10 * c + (limits.max_batched_tokens - 10) * b
    assert 0.75 * 0.057 < full_s < 1.08 * 0.057


def test_more_decoding_sequences_leave_less_for_prefill() -> None:
    few, many = settled(situation(sequences=2)).limits, settled(situation(sequences=25)).limits
    assert few is not None
    assert many is not None
    assert many.max_batched_tokens < few.max_batched_tokens


def test_late_answers_lower_what_the_model_would_allow() -> None:
    predicted = settled(situation())
    missed = settled(situation(late=2.0), predicted, turns=12)
    assert predicted.limits is not None
    assert missed.limits is not None
    assert missed.limits.max_batched_tokens < predicted.limits.max_batched_tokens
    assert missed.reason == "TpotOverThreshold"
    assert missed.message.startswith("more answers than may be are slower than 60 ms per token: ")


def test_as_many_late_answers_as_may_be_lower_nothing() -> None:
    assert settled(situation(late=0.9)).guard == 1.0


def test_when_the_misses_are_over_the_limits_come_back() -> None:
    predicted = settled(situation())
    missed = settled(situation(late=2.0), predicted, turns=12)
    recovered = settled(situation(late=0.0), missed, turns=120)
    assert recovered.guard == 1.0
    budgets = [m.limits.max_batched_tokens for m in (missed, recovered, predicted) if m.limits]
    assert budgets[0] < budgets[1]
    # Within a rung: coming from below and from above it stops at different sides of the margin.
    assert budgets[1] >= 0.75 * budgets[2]


def test_a_queue_lengthens_no_step_beyond_the_threshold() -> None:
    calm = settled(situation(late=0.0))
    queued = settled(situation(late=0.0, backlog=5000), calm)
    assert queued.guard == 1
    assert queued.limits == calm.limits
    assert queued.of("web-0") == calm.limits


def test_short_answers_after_long_ones_find_a_place() -> None:
    """What long answers keep running says nothing of the places that short ones need."""
    long = settled(situation(late=0.0, lengths=Lengths(prompt=200, output=500, weight=100)))
    short = settled(situation(late=0.0, lengths=Lengths(prompt=200, output=5, weight=100)))
    assert long.limits is not None
    assert short.limits == long.limits


def test_a_small_cache_caps_the_sequences() -> None:
    limits = settled(situation(kv_tokens=2500)).limits
    assert limits is not None
    assert limits.max_sequences <= 2500 / 225


def test_without_a_tpot_threshold_only_the_cache_limits() -> None:
    assert settled(situation(threshold_s=None)).limits == ENVELOPE.top
    small = settled(situation(threshold_s=None, kv_tokens=2500))
    assert small.reason == "KvCacheFull"


def test_between_two_adjustments_nothing_moves() -> None:
    first = adjust(LimitsMemory(), situation(), ALONE, ENVELOPE, POLICY, NOW)
    assert first.change is not None
    assert first.change.old == ENVELOPE.top
    second = adjust(first.memory, situation(), ALONE, ENVELOPE, POLICY, NOW + 2.9)
    assert second.change is None
    assert adjust(first.memory, situation(), ALONE, ENVELOPE, POLICY, NOW + 3.0).change is not None


def test_what_is_not_known_changes_nothing() -> None:
    begun = LimitsMemory(limits=ENVELOPE.top)
    unknown: list[Advice] = [
        adjust(memory, situation().changed(**update), ALONE, ENVELOPE, POLICY, NOW)
        for memory in (LimitsMemory(), begun)
        for update in ({"model": EngineModel()}, {"model": EngineModel(), "lengths": Lengths()})
    ] + [adjust(begun, situation(lengths=Lengths()), ALONE, ENVELOPE, POLICY, NOW)]
    assert [a.change for a in unknown] == [None] * 5
    assert {a.memory.limits for a in unknown} == {ENVELOPE.top}


def test_steps_that_were_seen_in_the_first_turn_give_the_first_limits_at_once() -> None:
    """As a declared step time does: nobody's answer has to be late first."""
    advice = adjust(LimitsMemory(), situation(lengths=Lengths()), ALONE, ENVELOPE, POLICY, NOW)
    assert advice.change is not None
    assert advice.change.reason == "Calibrated"
    known = adjust(LimitsMemory(limits=ENVELOPE.top), situation(), ALONE, ENVELOPE, POLICY, NOW)
    assert known.change is not None
    assert advice.change.new.max_batched_tokens < known.change.new.max_batched_tokens < ENVELOPE.top.max_batched_tokens


def test_a_step_time_that_was_declared_gives_the_first_limits_at_once() -> None:
    """Without it they come down rung by rung, once requests have told what a step takes."""
    declared = EngineModel.given((0.01, 2e-4, 1e-3, 0.0, 0.0))
    nobody = situation(sequences=0, lengths=Lengths(), kv_tokens=0).changed(
        model=declared, token_s=declared.prefill_token_seconds(1)
    )
    advice = adjust(LimitsMemory(), nobody, ALONE, ENVELOPE, POLICY, NOW)
    assert advice.memory.limits is not None
    # 0.95 of 60 ms, less 10 ms, at 0.2 ms a token, and no more than a rung above or below.
    assert 235 / 1.25 <= advice.memory.limits.max_batched_tokens <= 235 * 1.25
    assert advice.change is not None
    assert advice.change.reason == "Calibrated"
    assert advice.change.message.startswith("by what is known of steps so far, a step of 1024 tokens")
    assert adjust(advice.memory, nobody, ALONE, ENVELOPE, POLICY, NOW + 60).change is None


def test_a_step_time_that_allows_the_whole_envelope_changes_nothing() -> None:
    fast = situation(lengths=Lengths(), kv_tokens=0).changed(model=EngineModel.given((0, 1e-6, 0, 0, 0)))
    advice = adjust(LimitsMemory(), fast.changed(token_s=1e-6), ALONE, ENVELOPE, POLICY, NOW)
    assert (advice.change, advice.memory.limits) == (None, ENVELOPE.top)


def test_limits_from_another_envelope_are_brought_inside() -> None:
    outside = LimitsMemory(limits=BatchLimits(max_sequences=500, max_batched_tokens=8), adjusted_at=NOW)
    inside = adjust(outside, situation(), ALONE, ENVELOPE, POLICY, NOW).memory.limits
    assert inside is not None
    assert inside in ENVELOPE
