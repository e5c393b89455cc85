"""Whether long steps pay: chat on a large model, long prompts with short answers, and what measurements add."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.scaling import BatchLimitsPolicy
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.limits.batch_limits import adjust, farthest
from capstan_operator.decide.limits.canary import CanaryMemory
from capstan_operator.decide.limits.ideal import ideal, one_rung, rungs
from capstan_operator.decide.limits.ladder import ladder, towards
from capstan_operator.decide.limits.lateness import guarded, is_late
from capstan_operator.decide.limits.long_steps import LongSteps, late_tpot, late_ttft
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.limits.situation import Situation, Target
from capstan_operator.decide.limits.trials import Fleet
from capstan_operator.decide.seen.signals import Lengths, Signals
from capstan_operator.decide.seen.tracks import Tracks

LARGE, SMALL = (2.2e-2, 6.8e-5, 4e-5, 3e-8, 2.6e-9), (8e-3, 2.4e-5, 2e-5, 4.9e-8, 2e-9)
ENVELOPE = Envelope(min_sequences=4, max_sequences=64, min_batched_tokens=64, max_batched_tokens=2048)
POLICY = BatchLimitsPolicy()
GOAL_S, LONGEST_S = 0.0475, 0.163
ALONE = Fleet(replicas=(), tracks=Tracks(), max_age_s=10.0, answer_s=3.0, allowed=0.01)


def chat(*, arrivals_per_s: float = 15.0, **fields: object) -> Situation:
    """Chat on ten replicas of a large model: TTFT 500 ms, TPOT 50 ms."""
    signals = Signals(
        window_s=15,
        gateway_seen=True,
        complete=True,
        arrivals_per_s=arrivals_per_s,
        decode_sequences=8,
        context_tokens=8000,
    )
    return Situation(
        model=EngineModel(coefficients=LARGE),
        lengths=Lengths(prompt=850, output=220, weight=1000),
        signals=signals,
        token_s=7.1e-5,
        long_prompt=2500,
        target=Target(threshold_s=0.05),
        ttft_s=0.5,
        num_ready=10,
        seconds=2,
    ).changed(**fields)


def documents() -> Situation:
    """Long prompts with short answers on twelve replicas of a small model: TTFT 5 s, TPOT 50 ms."""
    return chat(arrivals_per_s=11.7).changed(
        model=EngineModel(coefficients=SMALL),
        lengths=Lengths(prompt=10_500, output=173, weight=1000),
        token_s=4.3e-5,
        long_prompt=19_400.0,
        ttft_s=5.0,
        num_ready=12,
    )


def chosen(situation: Situation, steps: LongSteps | None = None, *, counts: bool = False, turns: int = 1) -> LongSteps:
    steps = steps or LongSteps()
    for _ in range(turns):
        steps = steps.watched(situation, counts=counts).chosen(situation, GOAL_S, LONGEST_S)
    return steps


def test_chat_on_a_large_model_takes_long_steps_and_long_prompts_with_short_answers_do_not() -> None:
    assert chosen(chat()).are_long
    assert not chosen(documents()).are_long
    assert not chosen(documents(), LongSteps(are_long=True)).are_long


def test_without_a_ttft_there_is_nothing_to_be_gained() -> None:
    assert not chosen(chat(ttft_s=None)).are_long


def test_answers_that_are_late_under_long_steps_shorten_them_again() -> None:
    late = chat(target=Target(threshold_s=0.05, ended=1000, late=40_000, begun=1000))
    assert not chosen(late, LongSteps(are_long=True), counts=True, turns=10).are_long
    assert chosen(late, LongSteps(are_long=True), counts=False, turns=10).are_long, "those began under other limits"


def test_a_crowd_of_short_answers_that_were_late_together_does_not_shorten_steps() -> None:
    crowd = chat(target=Target(threshold_s=0.05, ended=1000, late=40_000, begun=1000))
    steps = chosen(crowd, LongSteps(are_long=True), counts=True)
    assert steps.are_long
    assert chosen(chat(), steps, counts=True, turns=60).are_long


def test_long_steps_that_were_given_up_are_tried_again_in_a_few_minutes_and_not_at_once() -> None:
    late = chat(target=Target(threshold_s=0.05, ended=600, late=28_000))
    steps = chosen(late, LongSteps(are_long=True), counts=True, turns=20)
    assert not steps.are_long
    seconds = 0
    while not steps.are_long and seconds < 3600:
        steps, seconds = chosen(chat(), steps, counts=True), seconds + 2
    assert 120 < seconds < 600


def test_first_tokens_that_are_late_under_short_steps_lengthen_them() -> None:
    calm = chat(arrivals_per_s=1.0, ttft_s=2.0)
    assert not chosen(calm).are_long
    late = calm.changed(target=Target(threshold_s=0.05, ended=200, begun=200, late_first=400))
    assert chosen(late, counts=True).are_long


@given(st.floats(0, 1), st.floats(0.001, 10), st.floats(0, 0.2), st.floats(0.001, 1), st.floats(1, 1e5))
def test_predicted_shares_are_shares_whatever_is_asked(
    load: float, prompt_s: float, base_s: float, threshold_s: float, output: float
) -> None:
    tpot = late_tpot(load, prompt_s, base_s, threshold_s, output)
    ttft = late_ttft(load, prompt_s, base_s, threshold_s, 1.0, 3)
    assert 0 <= tpot <= 1
    assert 0 <= ttft <= 1
    assert not math.isnan(tpot + ttft)


def test_shorter_steps_and_more_load_make_more_first_tokens_late() -> None:
    shares = [late_ttft(0.3, 0.1, 0.02, full_s, 1.0, 4) for full_s in (0.03, 0.05, 0.1, 0.3)]
    assert shares == sorted(shares, reverse=True)
    loads = [late_ttft(load, 0.1, 0.02, 0.1, 1.0, 4) for load in (0.1, 0.4, 0.8, 0.95)]
    assert loads == sorted(loads)
    assert loads[-1] == 1.0


def test_long_steps_lift_the_budget_to_the_envelope_and_leave_the_sequences() -> None:
    short = ideal(chat(), ENVELOPE.top, ENVELOPE, 1.0, are_long=False)
    long = ideal(chat(), ENVELOPE.top, ENVELOPE, 1.0, are_long=True)
    assert short.tokens < 500
    assert long.tokens == ENVELOPE.max_batched_tokens
    assert long.sequences == short.sequences


def test_late_answers_lower_nothing_while_first_tokens_are_late_more_often() -> None:
    memory = LimitsMemory(ended=100, late=150, begun=100, late_first=30, late_now=True)
    assert is_late(memory)
    assert guarded(memory) < 1.0
    first = memory.changed(late_first=60.0)
    assert not is_late(first)
    assert guarded(first) == 1.0


def test_the_way_to_the_ideal_goes_rung_by_rung_and_ends() -> None:
    start = BatchLimits(max_sequences=40, max_batched_tokens=370)
    way = list(rungs(start, ideal(chat(), start, ENVELOPE, 1.0, are_long=True), ENVELOPE, POLICY))
    budgets = [start.max_batched_tokens, *(limits.max_batched_tokens for limits in way)]
    assert budgets[-1] == ENVELOPE.max_batched_tokens
    assert all(1 < after / before < 1.12 for before, after in pairwise(budgets))
    at = start
    for _ in range(50):
        at = one_rung(at, way[-1], ENVELOPE, POLICY)
    assert at == way[-1]


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 100))
def test_a_value_known_to_be_good_is_reached_and_never_passed(current: int, goal: int, percent: int) -> None:
    steps = ladder(4096, 1, percent)
    for _ in range(len(steps) + 1):
        after = towards(current, goal, steps)
        assert min(current, goal) <= after <= max(current, goal)
        current = after
    assert current == goal


def test_what_was_borne_needs_no_second_trial_on_the_way_there() -> None:
    limits = BatchLimits(max_sequences=40, max_batched_tokens=370)
    memory = LimitsMemory(limits=limits, borne=BatchLimits(max_sequences=40, max_batched_tokens=1480))
    assert memory.has_borne(BatchLimits(max_sequences=40, max_batched_tokens=900))
    assert not memory.has_borne(BatchLimits(max_sequences=40, max_batched_tokens=1600))
    assert not memory.has_borne(BatchLimits(max_sequences=44, max_batched_tokens=900))
    assert not LimitsMemory(limits=limits).has_borne(limits)


def test_a_refused_step_is_tried_half_as_far() -> None:
    start = BatchLimits(max_sequences=40, max_batched_tokens=370)
    way = list(rungs(start, ideal(chat(), start, ENVELOPE, 1.0, are_long=True), ENVELOPE, POLICY))
    far = farthest(CanaryMemory(), start, way, 0.0)
    assert far.max_batched_tokens == pytest.approx(4 * 370, rel=0.1)
    nearer = farthest(CanaryMemory().reverted(far, start, 0.0), start, way, 1.0)
    assert 1.3 * start.max_batched_tokens < nearer.max_batched_tokens < 0.6 * far.max_batched_tokens


def test_a_guess_at_short_steps_is_taken_back_for_all_at_once_where_long_ones_pay() -> None:
    """What was set before anybody knew the requests was borne by none, and costs replicas until it is gone."""
    warming = chat(model=EngineModel.given(LARGE), is_warming=True)
    memory = adjust(LimitsMemory(), warming.changed(lengths=Lengths()), ALONE, ENVELOPE, POLICY, 0.0).memory
    assert memory.limits is not None
    assert memory.limits.max_batched_tokens < 500
    first, second = 10.0, 10.0 + POLICY.adjustment_interval_seconds
    memory = adjust(memory, warming, ALONE, ENVELOPE, POLICY, first).memory
    advice = adjust(memory, warming, ALONE, ENVELOPE, POLICY, second)
    assert advice.change is not None
    assert (advice.change.reason, advice.change.new.max_batched_tokens) == ("LongStepsPay", 2048)
    # What was measured in the meantime, or decided, is loosened by trials and not while others warm up.
    assert adjust(memory.changed(guessed=False), warming, ALONE, ENVELOPE, POLICY, second).change is None
    assert not advice.memory.guessed


def test_a_guess_is_looked_at_once() -> None:
    model = EngineModel.given(SMALL)
    warming = documents().changed(model=model, is_warming=True)
    memory = adjust(LimitsMemory(), warming.changed(lengths=Lengths()), ALONE, ENVELOPE, POLICY, 0.0).memory
    assert memory.guessed
    for i in range(2):
        memory = adjust(memory, warming, ALONE, ENVELOPE, POLICY, 10.0 * (i + 1)).memory
    assert not memory.guessed


def test_first_tokens_that_waited_for_the_first_replica_say_nothing_of_the_steps() -> None:
    held = Signals(window_s=2, gateway_seen=True, complete=False, held=10)
    nobody = chat(model=EngineModel(), lengths=Lengths(), num_ready=0, signals=held)
    waiting = adjust(LimitsMemory(), nobody, ALONE, ENVELOPE, POLICY, 100.0).memory
    late = chat(model=EngineModel.given(LARGE), target=Target(threshold_s=0.05, begun=20, late_first=2000))
    soon, later = (adjust(waiting, late, ALONE, ENVELOPE, POLICY, at).memory for at in (104.0, 111.0))
    assert soon.steps.late_first.missed == 0
    assert later.steps.late_first.missed > 0
