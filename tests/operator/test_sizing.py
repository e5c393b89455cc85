"""From misses to replicas: margins, feedback, and thresholds that no fleet can meet."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.decide.curve import Array, curve, sizes
from capstan_operator.decide.fleets.bank import Bank, Slot
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.fleets.shape import Shape
from capstan_operator.decide.scaling.sizing import Feedback, Sizing, margin, size
from capstan_operator.decide.seen.steps import StepSample

FLEETS = sizes(24)


def sized(
    *shares: Array, allowed: float = 0.01, factor: float = 1.0, growth: float = 1.0, spare: Sequence[float] = ()
) -> Sizing:
    """Of a look-back in which each class had a thousand requests."""
    names = tuple(f"class-{k}" for k in range(len(shares)))
    missed = tuple(curve(1000 * share) for share in shares)
    slot = Slot(start=0, end=1200, arrived=(1000.0,) * len(shares), missed=missed)
    bank = Bank(classes=names, since=0, slots=(slot,))
    return size(bank, FLEETS, [allowed] * len(shares), factor, spare=spare, growth=growth)


def misses(load: float, unavoidable: float = 0.0) -> Array:
    made: Array = np.minimum(1.0, np.exp(-20 * np.maximum(FLEETS / load - 1, 0)) + unavoidable)
    made[-1] = unavoidable
    return made


def test_the_worst_class_decides() -> None:
    both = sized(misses(3.0), misses(6.0))
    assert both.needed == sized(misses(6.0)).needed
    assert both.binding == "class-1"


def test_what_no_fleet_can_avoid_asks_for_no_replicas() -> None:
    hopeless = sized(misses(3.0, unavoidable=0.4))
    assert hopeless.needed <= sized(misses(3.0)).needed
    assert sized(np.ones_like(FLEETS)).needed == 1


def test_what_may_be_missed_counts_what_no_fleet_can_avoid_though_one_replica_is_enough() -> None:
    hopeless = sized(misses(0.1, unavoidable=0.4))
    assert hopeless.needed == 1
    assert hopeless.unavoidable == 0.4
    assert hopeless.missed(1)["class-0"] <= hopeless.allowed
    assert sized(misses(3.0)).unavoidable == 0


def test_no_replica_is_safe_to_give_up_while_the_load_grows_faster_than_it_could_come_back() -> None:
    steady, growing, falling = (sized(misses(3.0), growth=growth) for growth in (1.0, 1.5, 0.5))
    assert growing.needed == steady.needed
    assert growing.safe == pytest.approx(1.5 * steady.safe, abs=1)
    assert falling.safe == steady.safe


@given(st.floats(0.5, 20), st.floats(-2.0, 1.0), st.floats(-2.0, 1.0))
def test_the_more_of_the_error_budget_is_to_spare_the_smaller_is_a_fleet_that_is_safe(
    load: float, one: float, other: float
) -> None:
    less, more = (sized(misses(load), spare=[spare]) for spare in sorted((one, other)))
    assert less.needed == more.needed == sized(misses(load)).needed
    assert more.needed <= more.safe <= less.safe <= sized(misses(load)).safe


def test_what_is_to_spare_consolidates() -> None:
    load = 36.0
    careful, consolidated = sized(misses(load)), sized(misses(load), spare=[0.5])
    assert consolidated.safe < careful.safe
    assert sized(misses(load), spare=[-1.0]).safe == careful.safe
    # Of two classes the one without anything to spare decides.
    assert sized(misses(load), misses(load), spare=[0.5, 0.0]).safe == careful.safe


def test_a_small_fleet_that_is_told_to_have_missed_less_than_a_larger_one_is_not_enough() -> None:
    told = misses(3.0)
    told[1:4] = 0.0
    asked = sized(told)
    assert asked.needed == sized(misses(3.0)).needed
    assert asked.missed(1)["class-0"] > 0.5


def test_an_overload_beyond_every_allowed_fleet_is_not_unavoidable() -> None:
    assert sized(misses(40.0)).needed > 24


@given(st.floats(0.5, 20), st.floats(1.0, 1.5), st.floats(0.0, 0.05))
def test_fleets_are_as_large_as_misses_and_margin_say(load: float, factor: float, allowed: float) -> None:
    allowed += 0.001
    asked = sized(misses(load), allowed=allowed, factor=factor)
    exact = load * (1 - np.log(allowed) / 20) * factor
    assert exact - 0.1 <= asked.needed <= 1.01 * exact + 1.1
    assert asked.safe >= asked.needed


@given(st.floats(0.5, 20), st.floats(1.0, 1.5), st.floats(0.001, 0.05))
def test_what_is_told_of_a_fleet_agrees_with_what_is_asked_for(load: float, factor: float, allowed: float) -> None:
    asked = sized(misses(load), allowed=allowed, factor=factor)
    assert asked.missed(asked.needed)["class-0"] <= allowed * 1.0001
    assert asked.missed(asked.safe)["class-0"] <= allowed / 2 * 1.0001
    if asked.needed > 1:
        assert asked.missed(asked.needed - 1)["class-0"] > allowed * 0.9999


def test_the_margin_shrinks_with_what_was_seen_and_grows_with_slow_starts() -> None:
    calm = Feedback()
    assert margin([calm], [0.01], 0, 60) > margin([calm], [0.01], 3600, 60) > margin([calm], [0.01], 86_400, 60) > 1.0
    assert margin([calm], [0.01], 3600, 300) == pytest.approx(margin([calm], [0.01], 3600, 60) + 4 * 0.03)


def test_only_misses_that_were_not_told_add_to_the_margin() -> None:
    told = Feedback().learn(seen=1000, seen_missed=30, told=1000, told_missed=30, seconds=2, is_queueing=False)
    untold = Feedback().learn(seen=1000, seen_missed=30, told=1000, told_missed=0, seconds=2, is_queueing=False)
    few = Feedback().learn(seen=10, seen_missed=10, told=10, told_missed=0, seconds=2, is_queueing=False)
    assert told.margin(0.01) == few.margin(0.01) == 0
    assert untold.margin(0.01) == pytest.approx(6 * (0.03 - 0.004))
    assert untold.learn(seen=0, seen_missed=0, told=0, told_missed=0, seconds=6000, is_queueing=False).margin(0.01) == 0


def test_misses_around_a_queue_say_nothing_of_a_fleet_that_suffices() -> None:
    missing = {"seen": 1000.0, "seen_missed": 500.0, "told": 1000.0, "told_missed": 0.0}
    queued = Feedback().learn(**missing, seconds=2, is_queueing=True)
    assert queued.unexplained == 0
    soon = queued.learn(**missing, seconds=50, is_queueing=False)
    assert soon.unexplained == 0
    later = soon.learn(**missing, seconds=50, is_queueing=False)
    assert later.unexplained > 0.4


def test_attention_pairs_tell_how_long_prompts_are() -> None:
    # Half the prompts have 1000 tokens, half 3000, in chunks of 500.
    steps = []
    for prompt in (1000, 3000):
        for depth in range(0, prompt, 500):
            steps.append(StepSample(len(steps), 0.0, 0.05, 500, 0, 0, 500 * (depth + 250)))
    shape = Shape().learn(np.array(steps, dtype=float), kv_tokens=12_000, running=4, seconds=1)
    assert shape.long_prompt(2000) == pytest.approx((1000**2 + 3000**2) / 4000)
    assert shape.context == 3000
    model = EngineModel(coefficients=(0.01, 1e-4, 1e-3, 0.0, 1e-8))
    assert shape.token_seconds(model, 2000) == pytest.approx(1e-4 + 1e-8 * shape.long_prompt(0) / 2)
    assert Shape().long_prompt(2000) == 2000


@given(st.floats(0, 1e6), st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_prefill_token_costs_something_whatever_is_known_of_prompts(
    prompt: float, tokens: float, pairs: float
) -> None:
    """Also where attention is all that was told of its cost, before any prompt was counted."""
    model = EngineModel(coefficients=(2.5e-3, 0.0, 6e-5, 3e-7, 8e-5))
    assert Shape(prefill_tokens=tokens, prefill_pairs=pairs).token_seconds(model, prompt) > 0
