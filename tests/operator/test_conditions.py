"""Conditions say what is so in each state of the world, start-up phases are timed, and mode Shadow touches nothing."""

from typing import Any

import pytest
from plant import Plant
from worlds import NOW, STEP_COSTS, counters, deployment, engine_metrics, learnt, limits_state, observation, replica

from capstan_api.limits import BatchLimits
from capstan_api.startup import StartupPhase, StartupReport
from capstan_api.status import ConditionStatus, ConditionType, DecisionAction
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import Decision, Memory, decide
from capstan_operator.decide.actions import SetLimits
from capstan_operator.decide.seen.observation import ConfigurationFault, Phase, Replica

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
HUB = deployment(model={"source": {"uri": "hf://org/name"}})


def condition(decision: Decision, kind: ConditionType) -> tuple[ConditionStatus, str, str]:
    found = next(c for c in decision.status.conditions if c.type is kind)
    return found.status, found.reason, found.message


def decided(of: InferenceDeployment, *replicas: Replica, memory: Memory | None = None, **changed: Any) -> Decision:
    seen = observation(of, *replicas).changed(**changed)
    return decide(of, seen, memory or learnt(of), NOW)


def report(phase: StartupPhase, since: float = NOW, message: str = "") -> StartupReport:
    return StartupReport(phase=phase, since=since, message=message)


def starting(of: InferenceDeployment, phase: StartupPhase, since: float = NOW, message: str = "") -> Replica:
    return replica(of, 0, Phase.STARTING, created_at=NOW, startup=report(phase, since, message))


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([], (UNKNOWN, "NotYetFetched")),
        ([replica(HUB, 0, Phase.PENDING)], (UNKNOWN, "NotYetFetched")),
        ([starting(HUB, StartupPhase.FETCHING, message="3.2 of 16.1 GB")], (FALSE, "Fetching")),
        ([starting(HUB, StartupPhase.VERIFYING)], (FALSE, "Verifying")),
        ([starting(HUB, StartupPhase.LOADING)], (TRUE, "Fetched")),
        ([replica(HUB)], (TRUE, "Fetched")),
        ([replica(HUB, 0, Phase.FAILED, message="source: hf://org/name: 404")], (FALSE, "FetchFailed")),
        ([replica(HUB), starting(HUB, StartupPhase.FETCHING).changed(id="x")], (FALSE, "Fetching")),
    ],
)
def test_a_model_that_is_fetched(replicas: list[Replica], expected: tuple[ConditionStatus, str]) -> None:
    assert condition(decided(HUB, *replicas), ConditionType.MODEL_CACHED)[:2] == expected


def test_progress_and_failure_of_a_fetch_are_told_in_the_fetchers_words() -> None:
    words = "3.2 of 16.1 GB, 85 MB/s, 2 min left"
    fetching = decided(HUB, starting(HUB, StartupPhase.FETCHING, message=words))
    assert condition(fetching, ConditionType.MODEL_CACHED)[2].endswith(words)
    failed = decided(HUB, replica(HUB, 0, Phase.FAILED, message="source: not allowed; set secretName"))
    assert condition(failed, ConditionType.MODEL_CACHED)[2].endswith(": not allowed; set secretName")


def test_a_model_that_is_simply_there() -> None:
    of = deployment()
    assert condition(decided(of, replica(of)), ConditionType.MODEL_CACHED)[:2] == (TRUE, "NotFetched")


def test_an_objective_that_one_request_alone_misses_is_infeasible_and_names_one_that_is_not() -> None:
    slo = {"name": "interactive", "tpot": {"thresholdMilliseconds": 3}}
    strict = deployment(slos=[slo])

    status, reason, message = condition(decided(strict, replica(strict)), ConditionType.FEASIBLE)

    assert (status, reason) == (FALSE, "SLOInfeasible")
    assert message.startswith(
        "spec.slos[interactive].tpot.thresholdMilliseconds: 3 is too short: one request alone takes 5 ms per token"
    )
    assert "; 6 could be met" in message
    of = deployment()
    assert condition(decided(of, replica(of)), ConditionType.FEASIBLE)[:2] == (TRUE, "Feasible")
    assert condition(decided(of, memory=Memory()), ConditionType.FEASIBLE)[:2] == (UNKNOWN, "NotYetKnown")


def test_a_specification_that_is_not_in_force_stalls_the_rest_and_stops_nothing() -> None:
    of = deployment()
    fault = ConfigurationFault(message="spec.slos: required", generation=of.metadata.generation + 1)

    decision = decided(of, replica(of), configuration_fault=fault)

    assert decision.actions == ()
    assert condition(decision, ConditionType.CONFIGURATION_VALID)[:2] == (FALSE, "InvalidSpec")
    assert fault.message in condition(decision, ConditionType.STALLED)[2]
    assert condition(decision, ConditionType.READY)[0] is TRUE
    # Who waits for the newest generation learns that it was judged; the others speak of the one in force.
    generations = {c.type: c.observed_generation for c in decision.status.conditions}
    assert decision.status.observed_generation == fault.generation
    assert {kind for kind, generation in generations.items() if generation == fault.generation} == {
        ConditionType.CONFIGURATION_VALID,
        ConditionType.STALLED,
    }
    assert not [c for c in decided(of, replica(of)).status.conditions if c.type is ConditionType.STALLED]


def test_a_scrape_that_fails_once_is_no_news() -> None:
    of = deployment()
    before = decided(of, replica(of))
    dark = observation(of, replica(of, metrics=None), at=NOW + 1).changed(faults=("web-0: timeout",))

    decision = decide(of, dark, before.memory, NOW + 1)

    assert condition(decision, ConditionType.METRICS_FRESH)[0] is TRUE
    assert decision.signals.faults == ("web-0: timeout",)


def test_limits_on_their_way_are_not_called_missing() -> None:
    of, lowered = deployment(), BatchLimits(max_sequences=32, max_batched_tokens=214)
    memory = learnt(of)

    def after(seconds: float) -> tuple[ConditionStatus, str]:
        limits = memory.limits.changed(limits=lowered, changed_at=NOW - seconds, adjusted_at=NOW)
        decision = decided(of, replica(of), memory=memory.changed(limits=limits))
        return condition(decision, ConditionType.BATCH_LIMITS_APPLIED)[:2]

    assert after(1) == (TRUE, "InForce")
    assert after(11) == (FALSE, "Pending")


def test_phases_of_a_start_are_timed_and_summed_up() -> None:
    of = deployment()
    memory = Memory()
    stages = [(0, None), (4, report(StartupPhase.LOADING, NOW + 3)), (9, report(StartupPhase.WARMING, NOW + 8))]
    for seconds, said in stages:
        now = NOW + seconds
        each = replica(of, 0, Phase.STARTING, created_at=NOW, startup=said)
        memory = decide(of, observation(of, each, at=now), memory, now).memory
        # What is under way survives a restart of the operator.
        memory = Memory.restored(memory.durable())

    ready = replica(of, 0, created_at=NOW, ready_at=NOW + 10)
    status = decide(of, observation(of, ready, at=NOW + 11), memory, NOW + 11).status

    assert status.startup.samples == 1
    assert [(p.name, p.p50_seconds, p.p90_seconds) for p in status.startup.phases] == [
        ("Scheduling", 3, 3),
        ("Loading", 5, 5),
        ("Warming", 2, 2),
    ]


def test_what_ran_while_nobody_looked_is_counted() -> None:
    of = deployment()
    before = decided(of, replica(of)).memory.ledger
    memory = Memory.restored(decided(of, replica(of)).memory.durable())

    later = NOW + 7200
    decision = decide(of, observation(of, replica(of), replica(of, 1, created_at=later - 60), at=later), memory, later)

    assert decision.memory.ledger.replica_hours - before.replica_hours == pytest.approx(2 + 1 / 60)


@pytest.mark.parametrize(("resources", "each"), [({}, 0), ({"accelerator": {"count": 4}}, 4)])
def test_hours_of_accelerators_are_those_of_all_that_a_replica_has(resources: dict[str, Any], each: int) -> None:
    of = deployment(variants=[{"name": "it", "resources": resources}])
    memory = Memory.restored(decided(of, replica(of)).memory.durable())
    later = NOW + 3600
    usage = decide(of, observation(of, replica(of), at=later), memory, later).status.usage
    assert float(usage.replica_hours) > 0.9
    assert float(usage.accelerator_hours) == pytest.approx(each * float(usage.replica_hours), abs=1e-3)


def test_an_edit_does_not_change_what_was_spent() -> None:
    def priced(cost: str, count: int) -> InferenceDeployment:
        return deployment(
            variants=[{"name": "it", "costPerHour": cost, "resources": {"accelerator": {"count": count}}}]
        )

    dear, cheap = priced("8", 4), priced("1", 1)
    memory = Memory.restored(decided(dear, replica(dear)).memory.durable())
    for of, hour in ((dear, 1), (cheap, 2)):
        later = NOW + hour * 3600
        there = replica(of, created_at=NOW)
        memory = decide(of, observation(of, there, at=later), memory, later).memory
    usage = memory.ledger
    assert (usage.replica_hours, usage.accelerator_hours, usage.cost) == pytest.approx((2, 5, 9), abs=0.01)


def test_an_operator_that_was_away_does_not_put_to_sleep_at_once() -> None:
    of = deployment(scaling={"minReplicas": 0, "idle": {"scaleToZeroAfterSeconds": 60}})
    stale = Memory.restored(decided(of, replica(of)).memory.durable())
    for i in range(3):
        now = NOW + 3600 + i
        engine = replica(of, metrics=engine_metrics(at=now, heartbeat=now))
        stale = decide(of, observation(of, engine, at=now), stale, now).memory
    assert stale.replicas.wanted == 1


def test_mode_shadow_leaves_lowered_limits_alone_and_recommends() -> None:
    of = deployment(scaling={"mode": "Shadow"})
    lowered = BatchLimits(max_sequences=32, max_batched_tokens=214)
    engine = replica(of, limits=limits_state(of, lowered, lease_s=1))

    decision = decided(of, engine)

    assert decision.actions == ()
    assert decision.changes == ()
    limits = decision.status.effective_batch_limits
    assert limits is not None
    assert limits.max_batched_tokens == 214, "what is in force, whoever put it there"


def test_mode_shadow_recommends_limits_when_replicas_may_stay() -> None:
    plant = Plant(deployment(scaling={"mode": "Shadow"}), lambda _: 2.0, costs=STEP_COSTS).run(90)

    assert not [a for d in plant.decisions for a in d.actions if isinstance(a, SetLimits)]
    recommended = plant.decisions[-1].status.recommendation
    assert recommended is not None
    assert recommended.action is DecisionAction.SET_LIMITS
    assert recommended.from_value == "32x1024"
    later = plant.run(1).decisions[-1].status.recommendation
    assert later == recommended, "while it goes on it is told in the same words"


def test_the_scale_subresource_selects_engines_only() -> None:
    of = deployment()
    selector = decided(of, replica(of)).status.selector
    assert selector == "capstan.dev/deployment=web,app.kubernetes.io/component=engine"


def test_columns_are_filled() -> None:
    of = deployment()
    memory = decide(of, observation(of, replica(of), counted=counters(100)), learnt(of), NOW).memory
    seen = observation(of, replica(of), at=NOW + 1, counted=counters(200, bad=3))
    summary = decide(of, seen, memory, NOW + 1).status.summary
    assert (summary.model, summary.variant, summary.budget) == ("web", "default", "40.0")
