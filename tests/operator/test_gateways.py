"""Several gateways are one door: their counters add up, whoever comes, goes or starts anew among them."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW, counters, deployment, engine_metrics, gateway, learnt, observation, replica

from capstan_api.status import ConditionStatus, ConditionType
from capstan_operator.decide import Decision, Memory, decide
from capstan_operator.decide.actions import DrainReplica, EnsureGateway, Route, StopReplica
from capstan_operator.decide.seen.counters import ClassCounters
from capstan_operator.decide.seen.observation import Gateway, Observation, Phase

OF = deployment(scaling={"maxReplicas": 4})


def look(now: float, *doors: Gateway) -> Observation:
    ready = replica(OF, metrics=engine_metrics(at=now, heartbeat=now))
    return observation(OF, ready, at=now, with_gateway=False).changed(gateways=doors)


def door(name: str, now: float, requests: float, **fields: Any) -> Gateway:
    return gateway(OF, (replica(OF),), counters(requests), name, at=now, **fields)


def through(*looks: Observation, memory: Memory | None = None) -> list[Decision]:
    made, memory = [], memory or learnt(OF)
    for seen in looks:
        made.append(decide(OF, seen, memory, seen.at))
        memory = made[-1].memory
    return made


def requests_of(decision: Decision) -> float:
    return decision.signals.classes["interactive"].requests


def test_what_they_count_adds_up() -> None:
    made = through(
        look(NOW, door("a", NOW, 100, held=2.0), door("b", NOW, 1000, held=1.0)),
        look(NOW + 1, door("a", NOW + 1, 104, held=2.0), door("b", NOW + 1, 1003, held=1.0)),
    )
    assert made[1].signals.arrivals_per_s == 7
    assert requests_of(made[1]) == 7
    assert made[1].signals.held == 3
    assert made[1].memory.ledger.budgets["interactive"][0].total == 7


def test_a_new_one_starts_from_its_own_zero_and_one_that_leaves_takes_nothing_along() -> None:
    made = through(
        look(NOW, door("a", NOW, 100)),
        look(NOW + 1, door("a", NOW + 1, 101), door("b", NOW + 1, 5000)),
        look(NOW + 2, door("a", NOW + 2, 102), door("b", NOW + 2, 5003)),
        look(NOW + 3, door("b", NOW + 3, 5004)),
    )
    assert [requests_of(d) for d in made[1:]] == [1, 5, 6]
    assert all(d.signals.rejected == () for d in made)
    assert all(d.signals.complete for d in made)


def test_one_that_starts_again_costs_the_others_nothing() -> None:
    made = through(
        look(NOW, door("a", NOW, 100), door("b", NOW, 100)),
        look(NOW + 1, door("a", NOW + 1, 3), door("b", NOW + 1, 104)),
        look(NOW + 2, door("a", NOW + 2, 5), door("b", NOW + 2, 104)),
    )
    assert any("a: " in fault and "reset" in fault for fault in made[1].signals.rejected)
    assert [requests_of(d) for d in made[1:]] == [4, 6]


def test_one_that_was_not_read_is_made_up_for_at_the_next_look() -> None:
    silent = door("b", NOW + 1, 0).changed(metrics=None)
    made = through(
        look(NOW, door("a", NOW, 100), door("b", NOW, 100)),
        look(NOW + 1, door("a", NOW + 1, 102), silent),
        look(NOW + 2, door("a", NOW + 2, 104), door("b", NOW + 2, 106)),
    )
    assert [d.signals.complete for d in made] == [True, False, True]
    assert [requests_of(d) for d in made[1:]] == [2, 10]


def test_a_ready_one_that_stays_silent_is_missed_and_one_that_starts_is_not() -> None:
    memory = learnt(OF)
    for i in range(15):
        now = NOW + i
        silent = door("b", now, 0).changed(metrics=None)
        starting = door("c", now, 0).changed(metrics=None, phase=Phase.STARTING)
        decision = decide(OF, look(now, door("a", now, 100), silent, starting), memory, now)
        memory = decision.memory
    assert decision.signals.blind == ("b",)
    fresh = next(c for c in decision.status.conditions if c.type is ConditionType.METRICS_FRESH)
    assert (fresh.status, fresh.reason) == (ConditionStatus.FALSE, "Blind")
    just_ready = decide(OF, look(now + 1, door("a", now + 1, 100), door("d", now + 1, 1)), memory, now + 1)
    assert just_ready.signals.blind == ()


def test_only_those_are_told_of_replicas_that_know_others() -> None:
    knows, unaware = door("a", NOW, 1), door("b", NOW, 1).changed(table=())
    starting = door("c", NOW, 1).changed(table=(), phase=Phase.STARTING)

    (route,) = decide(OF, look(NOW, knows, unaware, starting), learnt(OF), NOW).actions

    assert isinstance(route, Route)
    assert route.gateways == ("b",)
    assert route.table == knows.table


def test_one_of_another_configuration_is_enough_to_tell_them_all() -> None:
    leaving = door("b", NOW, 1).changed(revision="before", phase=Phase.DRAINING)
    assert decide(OF, look(NOW, door("a", NOW, 1), leaving), learnt(OF), NOW).actions == ()

    behind = door("b", NOW, 1).changed(revision="before")
    (ensure,) = decide(OF, look(NOW, door("a", NOW, 1), behind), learnt(OF), NOW).actions
    assert isinstance(ensure, EnsureGateway)


def test_one_that_answers_makes_the_deployment_available() -> None:
    broken = door("b", NOW, 1).changed(phase=Phase.FAILED, message="exited with 1", metrics=None)
    status = decide(OF, look(NOW, door("a", NOW, 1), broken), learnt(OF), NOW).status
    assert next(c for c in status.conditions if c.type is ConditionType.AVAILABLE).status is ConditionStatus.TRUE


@settings(max_examples=60)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 5)), max_size=3),
        min_size=2,
        max_size=20,
    )
)
def test_no_request_is_counted_twice_or_before_its_gateway_was_known(turns: list[dict[str, int | None]]) -> None:
    """Gateways come and go and are sometimes not readable; what is counted is what came between looks at each."""
    totals, known = {"a": 100, "b": 0, "c": 7000}, dict[str, int]()
    memory, expected = learnt(OF), 0
    for i, present in enumerate(turns):
        now, doors = NOW + i, []
        for name, arrived in present.items():
            totals[name] += arrived or 0
            seen = door(name, now, totals[name])
            if arrived is None:
                seen = seen.changed(metrics=None)
            else:
                expected += totals[name] - known.get(name, totals[name])
                known[name] = totals[name]
            doors.append(seen)
        known = {name: total for name, total in known.items() if name in present}
        decision = decide(OF, look(now, *doors), memory, now)
        memory = decision.memory
        assert not [a for a in decision.actions if isinstance(a, (DrainReplica, StopReplica))]
    counted = sum(slot.total for slot in memory.ledger.budgets["interactive"])
    assert counted == expected


def test_a_class_that_had_no_series_yet_counts_from_zero_everywhere() -> None:
    silent = {"classes": {"interactive": ClassCounters()}}
    before = [door(name, NOW, 0) for name in "ab"]
    empty = [d.changed(metrics=d.metrics.changed(**silent)) for d in before if d.metrics]
    made = through(look(NOW, *empty), look(NOW + 1, *(door(name, NOW + 1, 10) for name in "ab")))
    assert requests_of(made[1]) == 20
    assert made[1].signals.rejected == ()
