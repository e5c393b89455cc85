"""Tables of worlds: what is decided in each, and in which words."""

from typing import Any

import pytest
from worlds import NOW, counters, deployment, engine_metrics, learnt, limits_state, observation, replica, samples

from capstan_api.limits import BatchLimits
from capstan_api.replicas import ReplicaState
from capstan_api.status import ConditionStatus, ConditionType, DecisionAction
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import Decision, Memory, Observation, decide, render
from capstan_operator.decide.actions import (
    DrainReplica,
    EnsureGateway,
    Route,
    SetLimits,
    StartReplica,
    StopReplica,
)
from capstan_operator.decide.seen.counters import ClassCounters
from capstan_operator.decide.seen.observation import Phase


def of_kind(decision: Decision, *kinds: type) -> list[Any]:
    return [action for action in decision.actions if isinstance(action, kinds)]


def condition(decision: Decision, kind: ConditionType) -> tuple[ConditionStatus, str]:
    found = next(c for c in decision.status.conditions if c.type is kind)
    return found.status, found.reason


def turns(
    of: InferenceDeployment, memory: Memory, counted: list[ClassCounters], /, *replicas: Any, **gateway: Any
) -> list[Decision]:
    """One decision a second while the gateway's counters go through `counted`."""
    made = []
    for i, counters_now in enumerate(counted):
        now = NOW + i
        fresh = [
            r.changed(metrics=r.metrics.changed(at=now, heartbeat=now)) if r.metrics is not None else r
            for r in replicas
        ]
        seen = observation(of, *fresh, at=now, counted=counters_now, **gateway)
        made.append(decide(of, seen, memory, now))
        memory = made[-1].memory
    return made


def test_an_empty_world_gets_a_gateway_and_its_first_replicas() -> None:
    of = deployment(scaling={"minReplicas": 2, "maxReplicas": 3})

    decision = decide(of, observation(of, with_gateway=False), Memory(), NOW)

    assert [type(a) for a in decision.actions] == [EnsureGateway, StartReplica, StartReplica]
    revision = render.revision(of)
    assert [a.id for a in of_kind(decision, StartReplica)] == [f"web-{revision}-0", f"web-{revision}-1"]
    assert condition(decision, ConditionType.READY) == (ConditionStatus.FALSE, "GatewayNotReady")


def test_without_the_model_nothing_is_started_and_status_says_why() -> None:
    of = deployment()
    nowhere = observation(of).changed(model_directory=None, faults=("bundled://tiny: not here",))

    decision = decide(of, nowhere, Memory(), NOW)

    assert not of_kind(decision, StartReplica)
    assert condition(decision, ConditionType.AVAILABLE) == (ConditionStatus.FALSE, "ModelNotFound")
    assert "not here" in next(c.message for c in decision.status.conditions if c.type is ConditionType.AVAILABLE)


def test_a_replica_that_became_ready_is_routed_to() -> None:
    of = deployment()
    ready = replica(of)
    seen = observation(of, ready)
    (door,) = seen.gateways
    unaware = seen.changed(gateways=(door.changed(table=()),))

    (route,) = of_kind(decide(of, unaware, learnt(of), NOW), Route)

    assert [(row.id, row.url, row.state) for row in route.table] == [(ready.id, ready.url, ReplicaState.READY)]


def test_an_unchanged_world_gets_no_action_and_the_same_words_again() -> None:
    of = deployment()
    seen = observation(of, replica(of))
    first = decide(of, seen, learnt(of), NOW)

    second = decide(of, seen, first.memory, NOW)

    assert first.actions == second.actions == ()
    assert first.said.message == second.said.message
    assert second.status == first.status


def test_a_lease_is_renewed_when_half_over_and_this_is_no_change() -> None:
    of = deployment()
    lowered = BatchLimits(max_sequences=32, max_batched_tokens=214)
    memory = learnt(of)
    memory = memory.changed(limits=memory.limits.changed(limits=lowered, adjusted_at=NOW))

    def decided(lease_s: float) -> Decision:
        engine = replica(of, limits=limits_state(of, lowered, lease_s=lease_s))
        return decide(of, observation(of, engine), memory, NOW)

    assert decided(lease_s=29).actions == ()
    (renewal,) = decided(lease_s=14).actions
    assert isinstance(renewal, SetLimits)
    assert renewal.is_renewal
    assert renewal.limits == lowered
    assert decided(lease_s=14).changes == ()


def test_an_engine_that_lost_its_limits_gets_them_again() -> None:
    of = deployment()
    lowered = BatchLimits(max_sequences=32, max_batched_tokens=214)
    memory = learnt(of)
    memory = memory.changed(limits=memory.limits.changed(limits=lowered, adjusted_at=NOW))

    (again,) = decide(of, observation(of, replica(of)), memory, NOW).actions

    assert (again.limits, again.is_renewal) == (lowered, False)


def test_more_than_one_can_serve_brings_replicas_in_one_good_sentence() -> None:
    of = deployment(scaling={"maxReplicas": 9})
    busy = replica(of, metrics=engine_metrics(waiting=14, running=20))
    counted = [counters(10 + 40 * i) for i in range(20)]

    made = turns(of, learnt(of), counted, busy, in_flight={busy.id: 34.0})

    change = next(c for d in made for c in d.changes if c.action is DecisionAction.SCALE_UP)
    assert change.reason == "MissesPredicted"
    assert change.message.startswith("1 replica would have missed ")
    assert " % > 5.0 % of interactive in the last " in change.message
    assert change.message.endswith(f" s: 1 → {change.to_value} replicas")
    assert int(change.to_value) >= 2


def test_a_replica_that_starts_already_counts() -> None:
    of = deployment(scaling={"maxReplicas": 5})
    busy = replica(of, metrics=engine_metrics(waiting=3, running=20))
    counted = [counters(10 + i, ttft=2.0) for i in range(20)]

    made = turns(of, learnt(of, wanted=2), counted, busy, replica(of, 1, Phase.STARTING))

    assert {d.memory.replicas.wanted for d in made} == {2}


def test_a_failed_replica_is_left_to_its_world_and_not_doubled() -> None:
    of = deployment()
    failed = replica(of, phase=Phase.FAILED, restarts=4, message="killed by SIGKILL")

    decision = decide(of, observation(of, failed), learnt(of), NOW)

    assert not of_kind(decision, StartReplica, StopReplica)
    assert condition(decision, ConditionType.PROGRESSING) == (ConditionStatus.FALSE, "CrashLoop")
    assert "killed by SIGKILL" in next(
        c.message for c in decision.status.conditions if c.type is ConditionType.PROGRESSING
    )


def test_bounds_in_the_resource_apply_at_once() -> None:
    of = deployment(scaling={"minReplicas": 3, "maxReplicas": 4})
    assert decide(of, observation(of, replica(of)), learnt(of, wanted=1), NOW).memory.replicas.wanted == 3
    assert decide(of, observation(of, replica(of)), learnt(of, wanted=9), NOW).memory.replicas.wanted == 4


def test_mode_manual_obeys_and_mode_shadow_only_recommends() -> None:
    manual = deployment(scaling={"mode": "Manual", "replicas": 2})
    assert decide(manual, observation(manual, replica(manual)), learnt(manual), NOW).memory.replicas.wanted == 2

    shadow = deployment(scaling={"mode": "Shadow"})
    busy = replica(shadow, metrics=engine_metrics(waiting=14, running=20, samples=samples(50, start=500)))
    made = turns(shadow, learnt(shadow), [counters(10 + 40 * i) for i in range(12)], busy)
    assert {d.memory.replicas.wanted for d in made} == {1}
    assert not any(of_kind(d, StartReplica, SetLimits) for d in made)
    recommended = made[-1].status.recommendation
    assert recommended is not None
    assert (recommended.action, recommended.to_value) == (DecisionAction.SCALE_UP, "2")


def test_the_idle_replica_goes_and_the_newest_goes_first_among_equals() -> None:
    of = deployment(scaling={"maxReplicas": 4})
    old, newer, working = (replica(of, i) for i in range(3))
    # One request a second: two replicas are plenty, and so would be one.
    seen = [counters(10 + i) for i in range(25)]

    made = turns(of, learnt(of, wanted=3), seen, old, newer, working, in_flight={working.id: 2.0})

    down = next(d for d in made if of_kind(d, DrainReplica))
    assert down.at == NOW + 20, "the whole look-back"
    assert [a.id for a in of_kind(down, DrainReplica)] == [newer.id]
    (route,) = of_kind(down, Route)
    states = {row.id: row.state for row in route.table}
    assert states == {old.id: ReplicaState.READY, newer.id: ReplicaState.DRAINING, working.id: ReplicaState.READY}
    order = [type(a) for a in down.actions]
    assert order.index(Route) < order.index(DrainReplica), "the gateway hears of it first"


STEP_TIME = {
    "baseNanoseconds": 10_000_000,
    "prefillTokenNanoseconds": 200_000,
    "sequenceNanoseconds": 1_000_000,
    "contextTokenPicoseconds": 0,
    "attentionPairPicoseconds": 0,
}


def test_a_declared_step_time_is_where_the_law_begins() -> None:
    """The first replica is told limits that keep the TPOT before anybody has asked it for anything."""
    of = deployment(variants=[{"name": "default", "stepTime": STEP_TIME}])
    first = decide(of, observation(of, replica(of)), Memory(), NOW)
    top = render.envelope(of).top
    assert first.memory.limits.reason == "Calibrated"
    [told] = of_kind(first, SetLimits)
    assert told.limits.max_batched_tokens < top.max_batched_tokens
    assert decide(deployment(), observation(of, replica(of)), Memory(), NOW).memory.limits.limits == top


def test_what_these_engines_took_counts_for_more_than_what_is_declared() -> None:
    of = deployment(variants=[{"name": "default", "stepTime": STEP_TIME}])
    memory = learnt(of)
    assert decide(of, observation(of, replica(of)), memory, NOW).memory.model.coefficients == memory.model.coefficients


def test_what_is_only_declared_is_not_remembered_as_learnt() -> None:
    """It may be corrected before the first request; what steps then tell is added to what is declared by then."""
    of = deployment(variants=[{"name": "default", "stepTime": STEP_TIME | {"baseNanoseconds": 90_000_000}}])
    first = decide(of, observation(of, replica(of)), Memory(), NOW).memory
    assert first.model == Memory().model
    corrected = deployment(variants=[{"name": "default", "stepTime": STEP_TIME}])
    told = engine_metrics(samples=samples(2))
    after = decide(corrected, observation(corrected, replica(corrected, metrics=told)), first, NOW + 2).memory
    assert after.model.is_usable
    assert after.model.coefficients[0] < 0.05


def test_a_new_revision_takes_over_without_a_gap() -> None:
    of = deployment(engine={"maxQueuedRequests": 7})
    old = replica(of, revision="00000000")
    memory = learnt(of).changed(revision="00000000")

    surge = decide(of, observation(of, old), memory, NOW)
    assert [type(a) for a in surge.actions] == [StartReplica]
    assert surge.said.action is DecisionAction.ROLL

    starting = decide(of, observation(of, old, replica(of, phase=Phase.STARTING)), surge.memory, NOW)
    assert starting.actions == ()

    over = decide(of, observation(of, old, replica(of)), starting.memory, NOW)
    assert [a.id for a in of_kind(over, DrainReplica)] == [old.id]


@pytest.mark.parametrize(
    ("change", "restarts"),
    [
        ({"scaling": {"maxReplicas": 9}}, False),
        ({"rollout": {"maxSurge": 2}}, False),
        ({"routing": {"hold": {"maxRequests": 3}}}, False),
        ({"engine": {"maxQueuedRequests": 7}}, True),
        ({"slos": [{"name": "interactive", "ttft": {"thresholdMilliseconds": 900}}]}, True),
        ({"variants": [{"name": "default", "resources": {"cpuMillicores": 500}}]}, True),
        ({"variants": [{"name": "default", "stepTime": STEP_TIME}]}, False),
    ],
)
def test_only_what_engines_run_with_starts_a_new_revision(change: dict[str, Any], restarts: bool) -> None:
    assert (render.revision(deployment(**change)) != render.revision(deployment())) is restarts


def test_a_failing_scrape_holds_and_a_long_one_is_called_blind() -> None:
    of = deployment()
    dark = replica(of, metrics=None)

    held = decide(of, observation(of, dark), learnt(of), NOW)
    assert held.signals.blind == ()
    assert not held.signals.complete

    later = observation(of, dark, at=NOW + 11)
    blind = decide(of, later, held.memory, NOW + 11)
    assert blind.signals.blind == (dark.id,)
    assert condition(blind, ConditionType.METRICS_FRESH) == (ConditionStatus.FALSE, "Blind")
    assert condition(blind, ConditionType.READY) == (ConditionStatus.FALSE, "Blind")


def test_a_replica_that_served_and_fell_silent_is_missed_even_when_its_world_calls_it_starting() -> None:
    of = deployment()
    seen = decide(of, observation(of, replica(of), replica(of, 1)), learnt(of, wanted=2), NOW)
    silent = replica(of, 1, Phase.STARTING)

    later = decide(of, observation(of, replica(of), silent, at=NOW + 1), seen.memory, NOW + 1)
    assert not later.signals.complete
    again = silent.changed(restarts=1)
    restarted = decide(of, observation(of, replica(of), again, at=NOW + 1), seen.memory, NOW + 1)
    assert restarted.signals.complete, "another process, which has not reported yet"


def test_a_heartbeat_that_stands_still_is_blind_and_one_that_moves_is_idle() -> None:
    of = deployment()

    def after(heartbeat: Any) -> Decision:
        memory, decision = learnt(of), None
        for i in range(15):
            now = NOW + i
            engine = replica(of, metrics=engine_metrics(at=now, heartbeat=heartbeat(i)))
            decision = decide(of, observation(of, engine, at=now), memory, now)
            memory = decision.memory
        assert decision is not None
        return decision

    assert after(lambda i: 7.0).signals.blind != ()
    idle = after(lambda i: float(i))
    assert idle.signals.blind == ()
    assert not idle.signals.active


@pytest.mark.parametrize(
    "poison",
    [
        counters().changed(arrived=float("nan")),
        counters().changed(prompt_tokens=-1.0),
        counters().changed(output_tokens=1e300),
        counters(3).changed(ttft=counters().ttft.changed(counts=(1.0, 2.0))),
    ],
    ids=["NaN", "negative", "absurd", "broken histogram"],
)
def test_unbelievable_counters_are_named_and_not_acted_upon(poison: ClassCounters) -> None:
    of = deployment()
    seen = observation(of, replica(of), counted=poison)

    decision = decide(of, seen, learnt(of, wanted=2), NOW)

    assert decision.memory.replicas.wanted == 2
    assert not of_kind(decision, DrainReplica, StopReplica)
    assert any("interactive" in fault for fault in decision.signals.faults)
    assert condition(decision, ConditionType.METRICS_FRESH) == (ConditionStatus.FALSE, "Rejected")
    assert Observation.from_json(seen.to_json()).to_json() == seen.to_json(), "and the record of it replays"


def test_a_counter_reset_is_no_traffic_and_no_crash() -> None:
    of = deployment()
    made = turns(of, learnt(of), [counters(1000), counters(3), counters(5)], replica(of))

    assert any("reset" in fault for fault in made[1].signals.faults)
    assert made[1].signals.arrivals_per_s == 0
    assert made[2].signals.classes["interactive"].requests == 2


def test_the_clock_may_be_set_back() -> None:
    of = deployment()
    first = decide(of, observation(of, replica(of)), learnt(of), NOW)

    second = decide(of, observation(of, replica(of), at=NOW - 3600), first.memory, NOW - 3600)

    assert second.at == NOW
    assert not of_kind(second, DrainReplica, StopReplica)


def test_status_tells_what_people_ask_for() -> None:
    of = deployment()
    engine = replica(of)
    made = turns(of, learnt(of), [counters(100), counters(200, bad=3)], engine)

    status = made[-1].status
    (slo,) = status.slos
    assert slo.attainment_percent == "97.00"
    assert slo.error_budget_remaining_percent == "40.00"
    assert slo.requests == 100
    assert slo.ttft_milliseconds is not None
    assert 80 <= slo.ttft_milliseconds <= 130
    assert status.summary.replicas == "1/1"
    assert status.desired_replicas == 1
    assert condition(made[-1], ConditionType.SLO_MET)[0] is ConditionStatus.TRUE
    assert condition(made[-1], ConditionType.READY)[0] is ConditionStatus.TRUE


def test_memory_survives_in_status_without_its_window() -> None:
    of = deployment()
    made = turns(of, learnt(of), [counters(100), counters(200)], replica(of))

    restored = Memory.restored(made[-1].memory.durable())

    assert restored.model == made[-1].memory.model
    assert restored.replicas == made[-1].memory.replicas
    assert restored.window == Memory().window
    assert Memory.restored("not ours") == Memory()


def test_a_restarted_operator_adopts_the_replicas_that_it_finds() -> None:
    of = deployment(scaling={"maxReplicas": 4})

    decision = decide(of, observation(of, replica(of), replica(of, 1)), Memory(), NOW)

    assert decision.memory.replicas.wanted == 2
    assert not of_kind(decision, StartReplica, DrainReplica, StopReplica)


def test_a_large_fleet_fits_into_status() -> None:
    of = deployment(scaling={"maxReplicas": 2000})
    dark = [replica(of, i, metrics=None, ready_at=NOW - 500) for i in range(2000)]
    held = decide(of, observation(of, *dark), learnt(of, wanted=2000), NOW)
    blind = decide(of, observation(of, *dark, at=NOW + 60), held.memory, NOW + 60)

    assert len(blind.signals.blind) == 2000
    assert len(blind.memory.durable()) < 65_536
    fresh = next(c for c in blind.status.conditions if c.type is ConditionType.METRICS_FRESH)
    assert fresh.message.endswith("and 1997 more: the last decision holds")


def test_a_large_fleet_that_starts_at_once_fits_into_status() -> None:
    of = deployment(scaling={"maxReplicas": 2000})
    starting = [replica(of, i, phase=Phase.STARTING) for i in range(2000)]
    decision = decide(of, observation(of, *starting), learnt(of, wanted=2000), NOW)

    assert len(decision.memory.durable()) < 65_536
