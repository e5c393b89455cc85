"""A rollout that gets nowhere is given up: the last revision that worked comes back by itself, and stays."""

from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW, deployment, learnt, observation, replica

from capstan_api.startup import StartupPhase, StartupReport
from capstan_api.status import ConditionStatus, ConditionType, DecisionAction
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import Decision, Memory, decide, render
from capstan_operator.decide.actions import DrainReplica, StartReplica, StopReplica
from capstan_operator.decide.seen.observation import Observation, Phase, Replica

DEADLINE_S = 100
OLD = deployment(rollout={"progressDeadlineSeconds": DEADLINE_S})
NEW = deployment(rollout={"progressDeadlineSeconds": DEADLINE_S}, engine={"maxQueuedRequests": 7})
STUBBORN = deployment(
    rollout={"progressDeadlineSeconds": DEADLINE_S, "autoRollback": "Disabled"}, engine={"maxQueuedRequests": 7}
)
SERVING = replica(OLD)


def of_kind(decision: Decision, *kinds: type) -> list[Any]:
    return [action for action in decision.actions if isinstance(action, kinds)]


def condition(decision: Decision, kind: ConditionType) -> tuple[ConditionStatus, str, str] | None:
    return next(((c.status, c.reason, c.message) for c in decision.status.conditions if c.type is kind), None)


def health(decision: Decision) -> tuple[ConditionStatus, str]:
    found = condition(decision, ConditionType.ROLLOUT_HEALTHY)
    assert found is not None
    return found[:2]


def seen_at(now: float, *replicas: Replica, **changed: Any) -> Observation:
    fresh = [
        r.changed(metrics=r.metrics.changed(at=now, heartbeat=now)) if r.metrics is not None else r for r in replicas
    ]
    return observation(OLD, *fresh, at=now).changed(**changed)


def through(
    of: InferenceDeployment, memory: Memory, *replicas: Replica, since: float = 0, until: float, **changed: Any
) -> Decision:
    """The last of one decision every ten seconds in an unchanged world."""
    at = since
    while True:
        decision = decide(of, seen_at(NOW + at, *replicas, **changed), memory, NOW + at)
        if at >= until:
            return decision
        memory, at = decision.memory, min(at + 10, until)


def stuck(phase: Phase = Phase.FAILED, message: str = "exited with 3", **fields: Any) -> Replica:
    return replica(NEW, 0, phase, message=message, created_at=NOW, **fields)


def test_a_revision_is_stable_once_all_its_replicas_serve() -> None:
    starting = decide(OLD, seen_at(NOW, replica(OLD, 0, Phase.STARTING)), Memory(), NOW)
    assert starting.status.stable_revision == ""
    assert health(starting) == (ConditionStatus.UNKNOWN, "RollingOut")
    assert condition(starting, ConditionType.RECONCILING) is not None

    serving = decide(OLD, seen_at(NOW, SERVING), starting.memory, NOW)

    assert serving.status.stable_revision == render.revision(OLD)
    assert serving.memory.rollout.stable is not None
    assert str(serving.memory.rollout.stable.args.model) == "/models/tiny"
    assert health(serving) == (ConditionStatus.TRUE, "Stable")
    assert condition(serving, ConditionType.RECONCILING) is None


def test_no_progress_until_the_deadline_brings_the_old_revision_back() -> None:
    before = through(NEW, learnt(OLD), SERVING, stuck(), until=DEADLINE_S)
    assert before.memory.revision == render.revision(NEW)
    assert not of_kind(before, DrainReplica, StopReplica)

    back = decide(NEW, seen_at(NOW + DEADLINE_S + 1, SERVING, stuck()), before.memory, NOW + DEADLINE_S + 1)

    assert back.memory.revision == render.revision(OLD)
    assert [a.id for a in of_kind(back, StopReplica)] == [stuck().id]
    assert not of_kind(back, DrainReplica)
    assert (back.said.action, back.said.reason) == (DecisionAction.ROLL, "RolledBack")
    status, reason, message = condition(back, ConditionType.ROLLOUT_HEALTHY) or ("", "", "")
    assert (status, reason) == (ConditionStatus.FALSE, "RolledBack")
    assert f"{stuck().id} is failed: exited with 3" in message
    assert (condition(back, ConditionType.STALLED) or ("",))[0] is ConditionStatus.TRUE
    assert back.revisions == {render.revision(NEW), render.revision(OLD)}


def test_rolled_back_it_stays_until_the_specification_changes() -> None:
    failed = through(NEW, learnt(OLD), SERVING, stuck(), until=DEADLINE_S + 10)

    later = through(NEW, failed.memory, SERVING, since=DEADLINE_S + 10, until=10 * DEADLINE_S)
    assert later.actions == ()
    assert later.memory.revision == render.revision(OLD)

    third = deployment(rollout={"progressDeadlineSeconds": DEADLINE_S}, engine={"maxQueuedRequests": 8})
    again = decide(third, seen_at(NOW + 2000, SERVING), later.memory, NOW + 2000)
    assert [a.revision for a in of_kind(again, StartReplica)] == [render.revision(third)]
    assert again.memory.rollout.failure is None

    undone = decide(OLD, seen_at(NOW + 2000, SERVING), later.memory, NOW + 2000)
    assert undone.actions == ()
    assert health(undone)[0] is ConditionStatus.TRUE


def test_a_replica_of_the_old_revision_is_started_again_as_it_was() -> None:
    gone = through(NEW, learnt(OLD), stuck(), until=DEADLINE_S + 10)

    (start,) = of_kind(gone, StartReplica)
    assert start.revision == render.revision(OLD)
    assert start.args.max_queued_requests == 256
    assert render.revision(NEW) != start.revision
    nowhere = seen_at(NOW + 200, model_directory=None, faults=("the new model is nowhere",))
    assert of_kind(decide(NEW, nowhere, gone.memory, NOW + 200), StartReplica), "it has its own model"


def test_what_can_never_run_is_given_up_at_once_and_called_infeasible() -> None:
    words = "infeasible: the KV cache needs 4096 MiB; spec.engine.kvCache.memoryMebibytes of 512 would fit"

    decision = decide(NEW, seen_at(NOW, SERVING, stuck(message=words)), learnt(OLD), NOW)

    assert decision.memory.revision == render.revision(OLD)
    assert condition(decision, ConditionType.FEASIBLE) == (ConditionStatus.FALSE, "Infeasible", words[12:])
    later = decide(NEW, seen_at(NOW + 1, SERVING), decision.memory, NOW + 1)
    assert condition(later, ConditionType.FEASIBLE) == (ConditionStatus.FALSE, "Infeasible", words[12:])


def test_the_first_revision_has_nothing_to_return_to_and_says_so() -> None:
    first = decide(NEW, seen_at(NOW, stuck()), Memory(), NOW)

    failed = through(NEW, first.memory, stuck(), until=DEADLINE_S + 10)

    assert failed.memory.revision == render.revision(NEW)
    assert health(failed) == (ConditionStatus.FALSE, "RolloutFailed")
    ready = decide(NEW, seen_at(NOW + 200, replica(NEW, 0)), failed.memory, NOW + 200)
    assert health(ready) == (ConditionStatus.TRUE, "Stable")


def test_without_auto_rollback_a_failed_rollout_is_told_and_goes_on() -> None:
    failed = through(STUBBORN, learnt(OLD), SERVING, stuck(), until=DEADLINE_S + 10)

    assert failed.memory.revision == render.revision(STUBBORN)
    assert not of_kind(failed, DrainReplica, StopReplica)
    assert health(failed) == (ConditionStatus.FALSE, "RolloutFailed")


def test_a_download_that_goes_on_is_progress() -> None:
    memory = learnt(OLD)
    for i in range(60):
        now = NOW + 10 * i
        report = StartupReport(phase=StartupPhase.FETCHING, done_bytes=i << 30, total_bytes=99 << 30, since=NOW)
        fetching = stuck(Phase.STARTING, "", startup=report)
        decision = decide(NEW, seen_at(now, SERVING, fetching), memory, now)
        memory = decision.memory
    assert memory.revision == render.revision(NEW)
    assert memory.rollout.failure is None

    halted = through(NEW, memory, SERVING, fetching, since=600, until=600 + DEADLINE_S + 10)
    assert halted.memory.revision == render.revision(OLD)


def test_an_operator_that_was_away_does_not_count_its_absence() -> None:
    before = through(NEW, learnt(OLD), SERVING, stuck(), until=20)
    restored = Memory.restored(before.memory.durable())

    back = decide(NEW, seen_at(NOW + 5000, SERVING, stuck()), restored, NOW + 5000)

    assert back.memory.revision == render.revision(NEW)
    assert back.memory.rollout.failure is None


def test_a_start_that_the_world_refuses_is_the_reason_given() -> None:
    refused = ("StartReplica: pods is forbidden: exceeded quota",)

    failed = through(NEW, learnt(OLD), SERVING, until=DEADLINE_S + 10, refused=refused)

    assert "exceeded quota" in (condition(failed, ConditionType.ROLLOUT_HEALTHY) or ("", "", ""))[2]
    assert (condition(failed, ConditionType.CAPACITY_AVAILABLE) or ("", ""))[:2] == (ConditionStatus.FALSE, "Refused")


def test_a_gateway_that_will_not_listen_is_no_reason_to_roll_engines_back() -> None:
    refused = ("EnsureGateway: the gateway refuses its configuration with 404: ",)

    done = through(NEW, learnt(OLD), replica(NEW), until=DEADLINE_S + 10, refused=refused)

    assert done.memory.rollout.failure is None
    assert done.status.stable_revision == render.revision(NEW)


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_deployment_that_sleeps_is_not_rolling_out(wanted: int) -> None:
    sleepy = {"scaling": {"minReplicas": wanted, "maxReplicas": 1}, "rollout": {"progressDeadlineSeconds": 1}}
    new = deployment(engine={"maxQueuedRequests": 7}, **sleepy)
    failed = through(new, learnt(deployment(**sleepy), wanted=wanted), until=60).memory.rollout.failure
    assert (failed is None) is (wanted == 0)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 1), st.booleans(), st.data())
def test_a_rollout_that_cannot_work_always_ends_with_the_old_revision_serving(
    wanted: int, unavailable: int, pends: bool, data: st.DataObject
) -> None:
    rollout = {"progressDeadlineSeconds": 60, "maxSurge": 1, "maxUnavailable": unavailable}
    scaling = {"minReplicas": wanted, "maxReplicas": wanted}
    old = deployment(scaling=scaling, rollout=rollout)
    new = deployment(scaling=scaling, rollout=rollout, engine={"maxQueuedRequests": 7})
    ids, broken = count(), Phase.PENDING if pends else Phase.FAILED
    world = {r.id: r for r in (replica(old, n) for n in range(wanted))}
    memory, quiet, drained_at = learnt(old, wanted=wanted), 0, dict[str, int]()
    for turn in range(200):
        now = NOW + 5 * turn
        decision = decide(new, seen_at(now, *world.values()), memory, now)
        memory = decision.memory
        ready = [r for r in world.values() if r.phase is Phase.READY]
        assert len(ready) - len(of_kind(decision, DrainReplica)) >= min(len(ready), wanted - unavailable)
        for start in of_kind(decision, StartReplica):
            assert start.id not in world
            made = replica(old, next(ids), Phase.STARTING, created_at=now)
            world[start.id] = made.changed(id=start.id, revision=start.revision)
        for end in of_kind(decision, DrainReplica, StopReplica):
            world[end.id] = world[end.id].changed(phase=Phase.DRAINING)
            drained_at[end.id] = turn + data.draw(st.integers(0, 4))
        quiet = 0 if of_kind(decision, StartReplica, StopReplica, DrainReplica) else quiet + 1
        for key, each in list(world.items()):
            if each.phase is Phase.DRAINING and turn >= drained_at[key]:
                del world[key]
            elif each.phase is Phase.STARTING and each.revision == render.revision(old):
                world[key] = replica(old, 0).changed(id=key, created_at=each.created_at)
            elif each.phase is Phase.STARTING:
                world[key] = each.changed(phase=broken)
        if memory.rollout.failure and quiet > 3 and all(r.phase is Phase.READY for r in world.values()):
            break
    assert [r.revision for r in world.values()] == [render.revision(old)] * wanted
    assert memory.rollout.failure
