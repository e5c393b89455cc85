"""The slow loop on its own: capacity, streaks, bounds, and the remedies in their order."""

from typing import Any

import pytest
from worlds import NOW, STEP_COSTS, deployment, samples

from capstan_operator.decide.batch_limits import LimitsMemory, Target
from capstan_operator.decide.engine_model import EngineModel
from capstan_operator.decide.replicas import (
    DOWN_UTILISATION,
    UP_UTILISATION,
    Advice,
    Capacity,
    Missed,
    ReplicasMemory,
    Situation,
    advise,
    capacity,
)
from capstan_operator.decide.signals import Lengths, Signals

ONE_PER_SECOND = Capacity(sequences=10, step_s=0.05, requests_per_s=1.0)
LATE = Missed(percentile=95, measured_s=2.0, threshold_s=1.0)
SCALING = deployment(scaling={"minReplicas": 1, "maxReplicas": 8}).spec.scaling


def situation(rate: float | None = 1.0, *, queue: float = 0, ready: int = 1, **fields: Any) -> Situation:
    complete = fields.pop("complete", True)
    signals = Signals(
        window_s=10, gateway_seen=True, complete=complete, arrivals_per_s=rate, waiting=queue, active=True
    )
    defaults: dict[str, Any] = {"limits": LimitsMemory(), "serves": ONE_PER_SECOND, "num_live": ready}
    return Situation(signals=signals, num_ready=ready, **{**defaults, **fields})


def after(turns: list[Situation], wanted: int = 1, scaling: Any = SCALING) -> Advice:
    """One turn a second."""
    memory = ReplicasMemory(wanted=wanted)
    for i, each in enumerate(turns):
        advice = advise(memory, each, scaling, NOW + i)
        memory = advice.memory
    return advice


def test_capacity_is_what_fills_steps_of_the_threshold() -> None:
    model, lengths = EngineModel().learn(samples(200)), Lengths(prompt=200, output=50, weight=100)
    target = Target(threshold_s=0.060, class_threshold_s=0.060)

    serves = capacity(model, lengths, target, 1000, kv_tokens=1e6)

    a, b, c, _, _ = STEP_COSTS
    sequences = (0.054 - a) / (c + b * 200 / 50)
    assert serves is not None
    assert serves.sequences == pytest.approx(sequences, rel=0.02)
    assert serves.step_s == pytest.approx(0.054, rel=0.02)
    assert serves.requests_per_s == pytest.approx(sequences / (50 * 0.054), rel=0.02)


def test_cache_and_envelope_bound_the_capacity() -> None:
    model, lengths = EngineModel().learn(samples(200)), Lengths(prompt=200, output=50, weight=100)
    assert (by_cache := capacity(model, lengths, None, 1000, kv_tokens=2250)) is not None
    assert by_cache.sequences == pytest.approx(10)
    assert (by_envelope := capacity(model, lengths, None, 7, kv_tokens=1e6)) is not None
    assert by_envelope.sequences == 7
    assert capacity(EngineModel(), lengths, None, 7, 0) is None
    assert capacity(model, Lengths(), None, 7, 0) is None


def test_a_cached_prefix_is_capacity() -> None:
    model, target = EngineModel().learn(samples(200)), Target(threshold_s=0.060, class_threshold_s=0.060)
    cold = capacity(model, Lengths(prompt=2000, output=50, weight=100), target, 1000, 1e6)
    warm = capacity(model, Lengths(prompt=2000, output=50, cached=0.9, weight=100), target, 1000, 1e6)
    assert cold is not None
    assert warm is not None
    assert warm.requests_per_s > 1.3 * cold.requests_per_s


def test_demand_brings_as_many_as_it_needs_at_once() -> None:
    rising = [situation(4.0)] * 7
    assert after(rising[:5]).memory.wanted == 1
    advice = after(rising[:6])
    assert advice.memory.wanted == 7
    assert advice.reason == "Demand"
    assert advice.message == "4 requests/s need 6.2 replicas of 1 requests/s: 1 → 7 replicas"


def test_a_window_takes_the_most_cautious_answer_in_it() -> None:
    up = after([situation(4.0)] * 3 + [situation(2.0)] + [situation(4.0)] * 2)
    assert up.memory.wanted == 3, "all turns of the window asked for at least that"
    down = after([situation(0.1, ready=6)] * 10 + [situation(1.5, ready=6)] + [situation(0.1, ready=6)] * 10, wanted=6)
    assert down.memory.wanted == 4


def test_a_turn_of_another_mind_begins_the_window_anew() -> None:
    assert after([situation(4.0)] * 4 + [situation(0.5)] + [situation(4.0)] * 4).memory.wanted == 1


def test_a_hole_in_the_measurements_begins_the_window_anew() -> None:
    memory = after([situation(4.0)] * 3).memory
    hole_s = SCALING.stale_metrics.max_age_seconds + 1
    late = advise(memory, situation(4.0), SCALING, NOW + 2 + hole_s)
    assert late.memory.wanted == 1
    assert late.memory.up is not None
    assert late.memory.up.since == NOW + 2 + hole_s


def test_no_more_than_max_and_it_says_so() -> None:
    advice = after([situation(40.0, ready=8)] * 10, wanted=8)
    assert advice.memory.wanted == advice.recommended == 8
    assert advice.reason == "MaxReplicas"
    assert "maxReplicas is 8" in advice.message


def test_between_up_and_down_nothing_moves() -> None:
    for wanted in (1, 2, 5):
        calm = wanted * (UP_UTILISATION + DOWN_UTILISATION) / 2
        assert after([situation(calm, ready=wanted)] * 30, wanted=wanted).memory.wanted == wanted


def test_what_was_just_added_is_not_taken_away_by_the_load_that_added_it() -> None:
    for wanted in (1, 2, 5):
        load = wanted * UP_UTILISATION + 0.2
        more = after([situation(load, ready=wanted)] * 10, wanted=wanted).memory.wanted
        assert more is not None
        assert more > wanted
        assert after([situation(load, ready=more)] * 60, wanted=more).memory.wanted == more


def test_limits_with_room_come_before_replicas() -> None:
    late = {"queue": 3, "missed": LATE}
    assert after([situation(0.3, **late, limits=LimitsMemory(has_room=True))] * 10).memory.wanted == 1
    assert after([situation(0.3, **late)] * 10).memory.wanted == 2


def test_late_requests_bring_one_more_than_serve_and_not_one_a_turn() -> None:
    late = situation(0.3, queue=3, missed=LATE, ready=1, num_live=2)
    assert after([late] * 60, wanted=2).memory.wanted == 2


def test_a_missed_tpot_brings_a_replica_when_limits_are_at_their_floor() -> None:
    slow = Target(threshold_s=0.06, class_threshold_s=0.06, measured_s=0.09, num_measured=50)
    assert after([situation(0.3, tpot=slow)] * 10).memory.wanted == 1
    advice = after([situation(0.3, tpot=slow, limits=LimitsMemory(at_floor=True))] * 6)
    assert advice.memory.wanted == 2
    assert advice.message == "TPOT p95 90 ms > 60 ms with limits at their lowest: 1 → 2 replicas"


def test_a_miss_keeps_what_there_is() -> None:
    assert after([situation(0.1, ready=3, missed=LATE)] * 60, wanted=3).memory.wanted == 3


def test_incomplete_measurements_never_take_away() -> None:
    advice = after([situation(0.1, ready=3, complete=False)] * 60, wanted=3)
    assert advice.memory.wanted == 3
    assert advice.reason == "MetricsMissing"


def test_min_replicas_of_one_never_sleeps() -> None:
    idle = situation(0.0)
    quiet = idle.model_copy(update={"signals": idle.signals.model_copy(update={"active": False})})
    memory = ReplicasMemory(wanted=1, active_at=NOW - 1e6)
    assert advise(memory, quiet, SCALING, NOW).memory.wanted == 1


def test_a_replica_that_still_loads_is_not_idle() -> None:
    sleepy = deployment(scaling={"minReplicas": 0, "idle": {"scaleToZeroAfterSeconds": 3}}).spec.scaling
    loaded = situation(0.0)
    quiet = loaded.model_copy(update={"signals": loaded.signals.model_copy(update={"active": False})})
    loading = quiet.model_copy(update={"num_ready": 0})
    assert after([loading] * 10, scaling=sleepy).memory.wanted == 1
    # Idleness counts from the moment at which it could have served.
    assert after([loading] * 10 + [quiet] * 2, scaling=sleepy).memory.wanted == 1
    assert after([loading] * 10 + [quiet] * 3, scaling=sleepy).memory.wanted == 0
