"""The slow loop on its own: bounds, windows, spares, what is kept when the world cannot be seen."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import NOW, deployment

from capstan_api.scaling import Scaling
from capstan_operator.decide.curve import curve, sizes
from capstan_operator.decide.fleets.bank import Bank, Slot
from capstan_operator.decide.scaling.replicas import Advice, ReplicasMemory, Situation, advise
from capstan_operator.decide.scaling.sizing import Sizing, size
from capstan_operator.decide.seen.signals import Signals

SCALING = deployment(scaling={"minReplicas": 1, "maxReplicas": 8}).spec.scaling
UP_S, DOWN_S = 5, 20


def sized(load: float, unavoidable: float = 0.0, growth: float = 1.0, spare: float = 0.0) -> Sizing:
    """Of a look-back in which fleets smaller than `load` missed everything, and larger ones ever less."""
    fleets = sizes(SCALING.max_replicas)
    shares = np.minimum(1.0, np.exp(-12 * (fleets / max(load, 1e-3) - 1)))
    shares[-1] = 0.0
    shares = np.maximum(shares, unavoidable)
    slot = Slot(start=NOW - 20, end=NOW, arrived=(1000.0,), missed=(curve(1000 * shares),))
    bank = Bank(classes=("interactive",), since=NOW - 1000, slots=(slot,))
    return size(bank, fleets, [0.05], 1.0, spare=[spare], growth=growth)


def situation(ready: int = 1, **fields: Any) -> Situation:
    seen: dict[str, Any] = {"gateway_seen": True, "complete": True, "active": True, **fields.pop("signals", {})}
    return Situation(signals=Signals(window_s=10, **seen), **{"num_live": ready, "num_ready": ready, **fields})


def after(
    turns: list[tuple[Situation, Sizing | None]],
    wanted: int = 1,
    scaling: Scaling = SCALING,
    memory: ReplicasMemory | None = None,
) -> Advice:
    """One turn a second."""
    memory = memory or ReplicasMemory(wanted=wanted, seen_at=NOW - 1, whole_since=NOW - 1000)
    for i, (each, asked) in enumerate(turns):
        advice = advise(memory, each, asked, scaling, NOW + i)
        memory = advice.memory
    return advice


def steady(count: int, load: float, ready: int = 1, **fields: Any) -> list[tuple[Situation, Sizing | None]]:
    return [(situation(ready, **fields), sized(load))] * count


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        ({"complete": False}, 0),
        ({"complete": False, "held": 1}, 1),
        ({"complete": False, "blind": ("llama-gateway-1",)}, 1),
        ({"complete": True}, 1),
    ],
    ids=["one look without an answer", "another gateway holds one", "blind for long", "a request arrived"],
)
def test_one_look_at_one_of_several_gateways_that_went_wrong_wakes_nobody(seen: dict[str, Any], wanted: int) -> None:
    asleep = deployment(scaling={"minReplicas": 0, "maxReplicas": 8}).spec.scaling
    assert after([(situation(0, signals=seen), None)], wanted=0, scaling=asleep).memory.wanted == wanted


def test_misses_bring_as_many_replicas_as_it_takes_at_once_and_say_why() -> None:
    assert after(steady(UP_S, 4.0)).memory.wanted == 1
    advice = after(steady(UP_S + 1, 4.0))
    assert advice.memory.wanted == sized(4.0).needed == 5
    assert advice.reason == "MissesPredicted"
    expected = "1 replica would have missed 100.0 % > 5.0 % of interactive in the last 20 s: 1 → 5 replicas"
    assert advice.message == expected


def test_a_window_takes_the_most_cautious_answer_in_it() -> None:
    turns = steady(3, 4.0) + steady(1, 2.0) + steady(UP_S, 4.0)
    assert after(turns).memory.wanted == 3, "all turns of the window asked for at least that"


def test_a_turn_of_another_mind_begins_the_window_anew() -> None:
    assert after(steady(UP_S - 1, 4.0) + steady(1, 0.5) + steady(UP_S - 1, 4.0)).memory.wanted == 1


def test_no_more_than_max_and_it_says_so() -> None:
    advice = after(steady(2 * UP_S, 40.0, ready=8), wanted=8)
    assert advice.memory.wanted == 8
    unreachable = after([(situation(7), sized(7.5))] * (UP_S + 1), wanted=7)
    assert unreachable.memory.wanted == 8
    assert unreachable.reason == "MaxReplicas"
    assert "maxReplicas is 8" in unreachable.message


def test_a_replica_goes_once_the_smaller_fleet_was_safe_for_the_whole_look_back() -> None:
    young = ReplicasMemory(wanted=3, seen_at=NOW, whole_since=NOW)
    early = after(steady(DOWN_S, 0.5, ready=3), memory=young)
    assert early.memory.wanted == 3
    assert early.reason == "SpareCapacityPending"
    late = after(steady(DOWN_S + 1, 0.5, ready=3), memory=young)
    assert late.memory.wanted == 2
    assert late.message == "2 replicas would have missed 0.0 % ≤ 5.0 % of interactive in the last 20 s: 3 → 2 replicas"


def test_misses_of_every_fleet_ask_for_no_replica_and_give_none_up() -> None:
    turns = [(situation(3), sized(0.5, unavoidable=0.9))] * (2 * DOWN_S)
    advice = after(turns, wanted=3)
    assert advice.memory.wanted == 3
    assert advice.reason == "ObjectiveOutOfReach"
    assert advice.message == "no fleet would have met interactive: 3 replicas kept"
    fewer = after([(situation(3), sized(0.5, unavoidable=0.2))] * (2 * DOWN_S), wanted=3)
    assert fewer.memory.wanted == 1
    assert "would have missed 20.0 % ≤ 21.0 % of interactive (any fleet 20.0 %) in the last" in fewer.message


def test_replicas_go_one_at_a_time() -> None:
    turns = steady(1, 0.5, ready=6) + steady(DOWN_S - 1, 0.5, ready=5)
    assert after(turns, wanted=6).memory.wanted == 5
    assert after([*turns, *steady(DOWN_S - 1, 0.5, ready=5)], wanted=6).memory.wanted == 4


def test_what_is_needed_is_not_what_is_safe_to_go_down_to() -> None:
    # With three it would meet the objective, with not much to spare.
    load = next(x / 100 for x in range(200, 300) if sized(x / 100).needed < sized(x / 100).safe)
    assert (sized(load).needed, sized(load).safe) == (3, 4)
    assert after(steady(30, load, ready=4), wanted=4).memory.wanted == 4
    assert after(steady(30, load, ready=3), wanted=3).memory.wanted == 3


def test_none_goes_while_the_load_grows_and_it_says_so() -> None:
    advice = after([(situation(3), sized(1.0, growth=4.0))] * (DOWN_S + 1), wanted=3)
    assert advice.recommended == 3
    assert advice.reason == "WithinTargets"
    assert advice.message.endswith(", and the load grew by 300.0 % in the time that a start takes")
    assert after([(situation(3), sized(1.0, growth=1.1))] * (DOWN_S + 1), wanted=3).recommended < 3


def test_spare_replicas_come_on_top_and_are_not_given_up() -> None:
    spare = deployment(scaling={"maxReplicas": 8, "spareReplicas": 1}).spec.scaling
    assert after(steady(UP_S + 1, 1.5, ready=1), scaling=spare).memory.wanted == 3
    assert after(steady(40, 1.5, ready=3), wanted=3, scaling=spare).memory.wanted == 3
    assert after(steady(40, 1.5, ready=3), wanted=3).memory.wanted == 2


def test_a_low_error_budget_keeps_what_there_is() -> None:
    advice = after(steady(40, 0.5, ready=3, budget_left=0.05), wanted=3)
    assert advice.memory.wanted == 3
    assert advice.reason == "ErrorBudgetLow"
    assert after(steady(1, 0.5, ready=3, budget_left=0.5), wanted=3).memory.wanted == 2


def test_a_replica_that_goes_because_budget_is_to_spare_says_so() -> None:
    load = next(
        load for load in np.arange(1.5, 3.0, 0.01) if sized(load).safe == 3 and sized(load, spare=0.6).safe == 2
    )
    assert after([(situation(3), sized(load))], wanted=3).memory.wanted == 3
    advice = after([(situation(3), sized(load, spare=0.6))], wanted=3)
    assert advice.memory.wanted == 2
    assert advice.message.endswith("and 60% of the error budget is to spare: 3 → 2 replicas")
    plain = after([(situation(3), sized(0.5, spare=0.6))], wanted=3)
    assert plain.memory.wanted == 2
    assert "to spare" not in plain.message
    # Above half of what may be missed by what no fleet avoids, and not for the budget's sake.
    overdrawn = after([(situation(3), sized(0.5, unavoidable=0.04, spare=-1.7))], wanted=3)
    assert overdrawn.memory.wanted == 2
    assert "to spare" not in overdrawn.message


def test_nothing_goes_while_others_start() -> None:
    starting = [(situation(2, num_live=3, num_starting=1), sized(0.5))] * 40
    assert after(starting, wanted=3).memory.wanted == 3


def test_a_queue_is_worked_off_by_more_than_its_arrivals_need() -> None:
    queue = {"signals": {"waiting": 80.0}, "catching_up": 5}
    assert after(steady(8, 0.5, **queue)).memory.wanted == 1, "a burst is no backlog"
    advice = after(steady(8 + UP_S + 1, 0.5, **queue))
    assert (advice.memory.wanted, advice.reason) == (5, "Backlog")
    assert advice.message == "80 requests wait, 5 replicas work that off: 1 → 5 replicas"
    kept = after(steady(40, 0.5, ready=3, signals={"waiting": 80.0}, catching_up=2), wanted=3)
    assert (kept.memory.wanted, kept.reason) == (3, "Backlog")


def test_no_room_in_the_cluster_keeps_what_there_is() -> None:
    advice = after([(situation(1, num_live=2, num_overdue=1), sized(4.0))] * 10, wanted=2)
    assert advice.memory.wanted == 2
    assert advice.recommended == 5
    assert advice.reason == "CapacityUnavailable"


def test_what_is_not_yet_known_changes_nothing() -> None:
    advice = after([(situation(2), None)] * 60, wanted=2)
    assert advice.memory.wanted == 2
    assert advice.reason == "CapacityUnknown"


def test_a_lasting_queue_brings_one_replica_at_a_time_while_nobody_knows_what_one_can_serve() -> None:
    queue = {"signals": {"waiting": 80.0}, "patience_s": 10.0}
    turn = (situation(2, **queue), None)
    assert after([turn] * 10, wanted=2).memory.wanted == 2, "the queue has not outlasted the TTFT yet"
    broken = [turn] * 9 + [(situation(2), None)] + [turn] * 9
    assert after(broken, wanted=2).memory.wanted == 2
    first = [turn] * (10 + UP_S + 1)
    advice = after(first, wanted=2)
    assert (advice.memory.wanted, advice.reason) == (3, "CapacityUnknown")
    assert advice.message == "80 requests wait, and what one can serve is not yet known: 2 → 3 replicas"
    starting = [(situation(2, num_live=3, num_starting=1, **queue), None)] * 100
    assert after([*first, *starting], wanted=2).memory.wanted == 3
    there = (situation(3, **queue), None)
    assert after([*first, *starting, *[there] * 10], wanted=2).memory.wanted == 3, "they waited for its start"
    assert after([*first, *starting, *[there] * (10 + UP_S + 1)], wanted=2).memory.wanted == 4
    full = after([(situation(8, **queue), None)] * 40, wanted=8)
    assert (full.memory.wanted, full.asked, full.reason) == (8, 9, "MaxReplicas")


def test_incomplete_measurements_never_take_away() -> None:
    advice = after(steady(60, 0.1, ready=3, signals={"complete": False}), wanted=3)
    assert advice.memory.wanted == 3
    assert advice.reason == "MetricsMissing"


def test_after_a_gap_the_look_back_begins_anew() -> None:
    memory = after(steady(1, 0.5, ready=3), wanted=3, memory=ReplicasMemory(wanted=3)).memory
    hole_s = SCALING.stale_metrics.max_age_seconds + 1
    back = advise(memory.changed(whole_since=NOW - 1000), situation(3), sized(0.5), SCALING, NOW + hole_s)
    assert back.memory.wanted == 3
    assert back.memory.whole_since == NOW + hole_s


def test_a_hole_of_less_than_a_tenth_of_the_look_back_keeps_what_was_seen() -> None:
    look_back = {"scaleDown": {"stabilizationWindowSeconds": 600}}
    long = deployment(scaling={"maxReplicas": 8, "behavior": look_back}).spec.scaling
    memory = ReplicasMemory(wanted=3, seen_at=NOW, whole_since=NOW - 1000)
    assert advise(memory, situation(3), sized(0.5), long, NOW + 59).memory.wanted == 2
    assert advise(memory, situation(3), sized(0.5), long, NOW + 61).memory.wanted == 3


def test_the_blind_hold_and_then_return_to_the_recent_peak() -> None:
    memory = after(steady(UP_S + 2, 4.0)).memory.changed(wanted=2)
    blind = situation(2, signals={"gateway_seen": False, "complete": False})
    patience_s = 3 * SCALING.stale_metrics.max_age_seconds
    held = advise(memory, blind, None, SCALING, NOW + UP_S + 1 + patience_s)
    assert (held.memory.wanted, held.reason) == (2, "MetricsMissing")
    back = advise(held.memory, blind, None, SCALING, NOW + UP_S + 1 + patience_s + 1)
    assert back.memory.wanted == 5
    assert back.message.endswith("2 → 5 replicas, the recent peak")


@pytest.mark.parametrize(("wanted", "bounds"), [(9, (1, 8)), (1, (2, 8))])
def test_new_bounds_hold_at_once(wanted: int, bounds: tuple[int, int]) -> None:
    scaling = deployment(scaling={"minReplicas": bounds[0], "maxReplicas": bounds[1]}).spec.scaling
    advice = advise(ReplicasMemory(wanted=wanted), situation(wanted), None, scaling, NOW)
    assert advice.memory.wanted == min(max(wanted, bounds[0]), bounds[1])
    assert advice.reason == ("MaxReplicas" if wanted == 9 else "MinReplicas")


def test_min_replicas_of_one_never_sleeps() -> None:
    quiet = situation(signals={"active": False})
    memory = ReplicasMemory(wanted=1, active_at=NOW - 1e6)
    assert advise(memory, quiet, sized(0.01), SCALING, NOW).memory.wanted == 1


def test_a_replica_that_still_loads_is_not_idle() -> None:
    sleepy = deployment(scaling={"minReplicas": 0, "idle": {"scaleToZeroAfterSeconds": 3}}).spec.scaling
    loading: list[tuple[Situation, Sizing | None]]
    quiet: list[tuple[Situation, Sizing | None]]
    loading = [(situation(1, num_ready=0, signals={"active": False}), None)] * 10
    quiet = [(situation(signals={"active": False}), None)]
    assert after(loading, scaling=sleepy).memory.wanted == 1
    # Idleness counts from the moment at which it could have served.
    assert after(loading + 2 * quiet, scaling=sleepy).memory.wanted == 1
    assert after(loading + 3 * quiet, scaling=sleepy).memory.wanted == 0


@given(st.floats(0.01, 30), st.floats(0.01, 30), st.integers(1, 8))
def test_more_load_never_asks_for_fewer(a: float, b: float, wanted: int) -> None:
    low, high = (after(steady(UP_S + 1, load, ready=wanted), wanted=wanted) for load in sorted((a, b)))
    assert (low.memory.wanted or 0) <= (high.memory.wanted or 0)


@given(st.floats(0.01, 30), st.integers(1, 8))
def test_a_steady_load_comes_to_rest(load: float, wanted: int) -> None:
    memory = ReplicasMemory(wanted=wanted, seen_at=NOW - 1, whole_since=NOW - 1000)
    courses = []
    for i in range(300):
        memory = advise(memory, situation(memory.wanted or 1), sized(load), SCALING, NOW + i).memory
        courses.append(memory.wanted)
    assert len(set(courses[200:])) == 1
    directions = {np.sign(b - a) for a, b in pairwise(courses) if a is not None and b is not None}
    assert len(directions - {0}) <= 1, "it never turns round"
