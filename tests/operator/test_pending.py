"""A replica that finds no room is told of, is not counted on, and stands in nobody's way."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW, counters, deployment, engine_metrics, learnt, observation, replica

from capstan_api.status import ConditionStatus, ConditionType
from capstan_operator.decide import Decision, Memory, decide
from capstan_operator.decide.actions import DrainReplica, StartReplica, StopReplica
from capstan_operator.decide.seen.observation import Phase, Replica

OF = deployment(scaling={"maxReplicas": 4, "pendingTimeoutSeconds": 30})
NO_ROOM = "0/3 nodes are available: 3 Insufficient cpu."


def of_kind(decision: Decision, *kinds: type) -> list[Any]:
    return [action for action in decision.actions if isinstance(action, kinds)]


def condition(decision: Decision, kind: ConditionType) -> tuple[ConditionStatus, str, str]:
    found = next(c for c in decision.status.conditions if c.type is kind)
    return found.status, found.reason, found.message


def pending(ordinal: int, age_s: float) -> Replica:
    return replica(OF, ordinal, Phase.PENDING, created_at=NOW - age_s, message=NO_ROOM)


def busy(now: float, waiting: float = 14) -> Replica:
    return replica(OF, metrics=engine_metrics(at=now, heartbeat=now, waiting=waiting, running=20))


def under_load(memory: Memory, *others: Replica, turns: int = 10) -> list[Decision]:
    """One decision a second; one replica is ready, and requests are late."""
    made = []
    for i in range(turns):
        now = NOW + i
        seen = observation(OF, busy(now), *others, at=now, counted=counters(10 + 30 * i, ttft=2.0))
        made.append(decide(OF, seen, memory, now))
        memory = made[-1].memory
    return made


def test_one_that_has_just_been_made_is_waited_for() -> None:
    decision = decide(OF, observation(OF, replica(OF), pending(1, age_s=5)), learnt(OF, wanted=2), NOW)

    assert not of_kind(decision, StartReplica, StopReplica, DrainReplica)
    assert condition(decision, ConditionType.CAPACITY_AVAILABLE)[:2] == (ConditionStatus.UNKNOWN, "Placing")
    assert (decision.status.pending_replicas, decision.status.starting_replicas) == (1, 0)
    assert condition(decision, ConditionType.READY)[0] is ConditionStatus.TRUE


def test_after_the_timeout_it_is_reported_in_the_worlds_own_words() -> None:
    waiting = pending(1, age_s=31)

    decision = decide(OF, observation(OF, replica(OF), waiting), learnt(OF, wanted=2), NOW)

    status, reason, message = condition(decision, ConditionType.CAPACITY_AVAILABLE)
    assert (status, reason) == (ConditionStatus.FALSE, "Unschedulable")
    assert message == f"{waiting.id}: {NO_ROOM}"


def test_no_more_are_stacked_behind_one_that_finds_no_room() -> None:
    assert max(d.memory.replicas.wanted or 0 for d in under_load(learnt(OF, wanted=1))) > 1, "this load asks for more"

    made = under_load(learnt(OF, wanted=2), pending(1, age_s=31))

    assert {d.memory.replicas.wanted for d in made} == {2}
    assert not any(of_kind(d, StartReplica) for d in made)
    held = [d.said.message for d in made if d.said.reason == "CapacityUnavailable"]
    assert held, "while limits move too, it is told in between"
    assert all("1 replica found no room to run: 2 replicas kept" in message for message in held)


def test_room_that_appears_lifts_it_again() -> None:
    stuck = under_load(learnt(OF, wanted=2), pending(1, age_s=31))[-1]
    came = replica(OF, 1, Phase.STARTING, created_at=NOW - 31)

    freed = under_load(stuck.memory, came)

    assert condition(freed[0], ConditionType.CAPACITY_AVAILABLE)[0] is ConditionStatus.TRUE
    assert "CapacityUnavailable" not in {d.said.reason for d in freed}


def test_spare_capacity_gives_up_the_pending_one_first() -> None:
    memory = learnt(OF, wanted=2)
    for i in range(25):
        now = NOW + i
        quiet = replica(OF, metrics=engine_metrics(at=now, heartbeat=now))
        seen = observation(OF, quiet, pending(1, age_s=31 - i), at=now, counted=counters(10 + i))
        decision = decide(OF, seen, memory, now)
        memory = decision.memory
        if of_kind(decision, StopReplica):
            break

    assert [a.id for a in of_kind(decision, StopReplica)] == [pending(1, 0).id]
    assert not of_kind(decision, DrainReplica)


def test_one_that_never_finds_room_does_not_keep_a_deployment_from_sleep() -> None:
    sleepy = deployment(
        scaling={"minReplicas": 0, "pendingTimeoutSeconds": 30, "idle": {"scaleToZeroAfterSeconds": 10}}
    )
    memory = learnt(sleepy)
    for i in range(60):
        now = NOW + i
        waiting = replica(sleepy, 0, Phase.PENDING, created_at=NOW, message=NO_ROOM)
        memory = decide(sleepy, observation(sleepy, waiting, at=now), memory, now).memory
    assert memory.replicas.wanted == 0


@settings(max_examples=40)
@given(st.integers(0, 3), st.integers(0, 200), st.lists(st.integers(0, 6), min_size=12, max_size=30))
def test_pending_replicas_never_change_what_becomes_of_the_others(
    num_pending: int, age_s: int, per_second: list[int]
) -> None:
    """Downwards the law decides with pending replicas as it would without them; upwards it never adds to them."""
    extra = [pending(7 + n, age_s) for n in range(num_pending)]
    alone, together = learnt(OF, wanted=2), learnt(OF, wanted=2)
    arrived = 0
    for i, requests in enumerate(per_second):
        now, arrived = NOW + i, arrived + requests
        ready = [replica(OF, n, metrics=engine_metrics(at=now, heartbeat=now)) for n in range(2)]
        one = decide(OF, observation(OF, *ready, at=now, counted=counters(arrived)), alone, now)
        other = decide(OF, observation(OF, *ready, *extra, at=now, counted=counters(arrived)), together, now)
        alone, together = one.memory, other.memory
        assert other.signals.complete == one.signals.complete
        assert (other.memory.replicas.wanted or 0) <= (one.memory.replicas.wanted or 0)
        live = 2 + num_pending
        assert live + len(of_kind(other, StartReplica)) <= max(live, other.memory.replicas.wanted or 0)
        serving = {r.id for r in ready}
        assert {a.id for a in of_kind(other, DrainReplica)} <= serving
        # Those that serve nobody go first.
        if of_kind(other, DrainReplica):
            assert len(of_kind(other, StopReplica)) == num_pending
