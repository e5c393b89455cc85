"""What holds in every world: bounds, calm, caution, and decisions that replay.

CAPSTAN_CAMPAIGNS=full asks in forty times as many worlds: 100,000 decisions, and about five minutes.
"""

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW, counters, deployment, engine_metrics, learnt, limits_state, observation, replica, samples

from capstan_api.limits import BatchLimits
from capstan_api.status import InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import Decision, Memory, Observation, decide, render
from capstan_operator.decide.actions import DrainReplica, SetLimits, StartReplica, StopReplica
from capstan_operator.decide.seen.counters import ClassCounters, Histogram
from capstan_operator.decide.seen.observation import Phase

OF = deployment(scaling={"minReplicas": 1, "maxReplicas": 4})
TIMES = 40 if os.environ.get("CAPSTAN_CAMPAIGNS") == "full" else 1
numbers = st.one_of(
    st.floats(0, 200), st.sampled_from([float("nan"), float("inf"), -1.0, 1e300, 1e15]), st.integers(0, 50).map(float)
)


@st.composite
def histograms(draw: Any) -> Histogram:
    return Histogram(bounds=(0.1, 1.0), counts=tuple(draw(st.lists(numbers, min_size=3, max_size=3))))


@st.composite
def counted(draw: Any) -> ClassCounters:
    if draw(st.booleans()):
        return counters(draw(st.integers(0, 60)), ttft=draw(st.floats(0.01, 5)), tpot=draw(st.floats(0.001, 0.5)))
    fields = {name: draw(numbers) for name in ClassCounters.field_names if name not in ("ttft", "tpot")}
    return ClassCounters(**fields, ttft=draw(histograms()), tpot=draw(histograms()))


@st.composite
def looks(draw: Any) -> Observation:
    """Any observation at all, most of its numbers good and some of them poison."""
    at = NOW + draw(st.integers(-100, 300))
    replicas = []
    for ordinal in range(draw(st.integers(0, 5))):
        metrics = limits = None
        if draw(st.booleans()):
            metrics = engine_metrics(
                at=at - draw(st.integers(0, 40)),
                heartbeat=draw(numbers),
                waiting=draw(numbers),
                running=draw(numbers),
                kv_usage=draw(st.floats(0, 1)),
                samples=samples(draw(st.integers(0, 40)), start=draw(st.integers(1, 500))),
            )
            envelope = render.envelope(OF)
            limits = limits_state(
                OF,
                BatchLimits(max_sequences=draw(st.integers(4, 32)), max_batched_tokens=draw(st.integers(64, 1024))),
                draw(st.one_of(st.none(), st.floats(0, 60))),
            )
            assert limits.limits in envelope
        phase = draw(st.sampled_from(Phase))
        revision = draw(st.sampled_from([None, "0ldc0de0"]))
        replicas.append(replica(OF, ordinal, phase, revision=revision, metrics=metrics, limits=limits))
    unique = {r.id: r for r in replicas}
    return observation(
        OF,
        *unique.values(),
        at=at,
        counted=draw(counted()),
        with_gateway=draw(st.booleans()),
        held=draw(numbers),
    )


@settings(max_examples=60 * TIMES)
@given(st.lists(st.tuples(looks(), st.integers(0, 30)), min_size=1, max_size=8), st.booleans())
def test_bounds_hold_whatever_is_observed(sequence: list[tuple[Observation, int]], knows: bool) -> None:
    memory, now = learnt(OF) if knows else Memory(), NOW
    envelope = render.envelope(OF)
    for seen, pause in sequence:
        decision = decide(OF, seen, memory, now)
        assert 1 <= (decision.memory.replicas.wanted or 0) <= 4
        for action in decision.actions:
            if isinstance(action, SetLimits):
                assert action.limits in envelope
        live = [r for r in seen.replicas if r.phase is not Phase.DRAINING]
        started = [a.id for a in decision.actions if isinstance(a, StartReplica)]
        assert not set(started) & {r.id for r in seen.replicas}
        # A rollout may have one more than is wanted; nothing else may, or adds to what is already too much.
        assert len(live) + len(started) <= max(len(live), 4 + 1)
        assert len(decision.memory.durable()) < 65_536
        memory, now = decision.memory, now + pause


@settings(max_examples=40 * TIMES)
@given(st.lists(looks(), min_size=1, max_size=4), st.sampled_from(["Auto", "Shadow"]))
def test_the_status_is_the_one_that_its_contract_would_give(sequence: list[Observation], mode: str) -> None:
    of = deployment(scaling={"minReplicas": 1, "maxReplicas": 4, "mode": mode})
    memory = learnt(of)
    for i, seen in enumerate(sequence):
        decision = decide(of, seen, memory, NOW + i)
        text = decision.status.model_dump_json()
        validated = InferenceDeploymentStatus.model_validate_json(text)
        assert decision.status == validated
        assert text == validated.model_dump_json()
        memory = decision.memory


@settings(max_examples=40 * TIMES)
@given(st.lists(st.tuples(looks(), st.integers(0, 30)), min_size=1, max_size=5))
def test_deciding_again_at_the_same_moment_changes_nothing_more(sequence: list[tuple[Observation, int]]) -> None:
    memory, now = learnt(OF), NOW
    for seen, pause in sequence:
        decision = decide(OF, seen, memory, now)
        memory, now = decision.memory, now + pause
    # Told the same twice, the law does not become surer of anything.
    again = decide(OF, seen, decision.memory, decision.at)
    assert again.changes == ()
    assert again.memory.replicas.wanted == decision.memory.replicas.wanted
    assert again.memory.limits.limits == decision.memory.limits.limits
    assert {a.kind for a in again.actions} <= {a.kind for a in decision.actions}, "what was asked for and not yet done"


@settings(max_examples=60 * TIMES)
@given(looks(), st.integers(1, 4), st.integers(0, 10_000))
def test_one_look_alone_never_takes_a_replica_away(seen: Observation, wanted: int, pause: int) -> None:
    before = learnt(OF, wanted=wanted)

    decision = decide(OF, seen, before, NOW + pause)

    assert (decision.memory.replicas.wanted or 0) >= wanted


@settings(max_examples=40 * TIMES)
@given(st.lists(st.sampled_from(["gateway", "engines", "nan"]), min_size=30, max_size=40), st.integers(2, 4))
def test_never_down_on_bad_data(kinds: list[str], wanted: int) -> None:
    memory = learnt(OF, wanted=wanted)
    fleet = [replica(OF, i) for i in range(wanted)]
    for i, kind in enumerate(kinds):
        now = NOW + 2 * i
        engines = [r.changed(metrics=engine_metrics(at=now, heartbeat=now)) for r in fleet]
        poison = counters(5)
        if kind == "engines":
            engines = [r.changed(metrics=None) for r in fleet]
        if kind == "nan":
            poison = poison.changed(arrived=float("nan"))
        seen = observation(OF, *engines, at=now, counted=poison, with_gateway=kind != "gateway")
        decision = decide(OF, seen, memory, now)
        assert decision.memory.replicas.wanted == wanted
        assert not [a for a in decision.actions if isinstance(a, (DrainReplica, StopReplica))]
        memory = decision.memory


@settings(max_examples=30 * TIMES)
@given(st.floats(0, 40), st.floats(0, 40), st.integers(0, 20))
def test_a_longer_queue_never_asks_for_fewer_replicas(a: float, b: float, per_second: int) -> None:
    def recommended(waiting: float) -> int:
        memory = learnt(OF, wanted=2)
        decision: Decision | None = None
        for i in range(8):
            now = NOW + i
            metrics = engine_metrics(at=now, heartbeat=now, waiting=waiting, running=5)
            fleet = [replica(OF, n, metrics=metrics) for n in range(2)]
            seen = observation(OF, *fleet, at=now, counted=counters(10 + per_second * i))
            decision = decide(OF, seen, memory, now)
            memory = decision.memory
        assert decision is not None
        return decision.memory.replicas.wanted or 0

    assert recommended(min(a, b)) <= recommended(max(a, b))


@settings(max_examples=25 * TIMES)
@given(st.lists(looks(), min_size=1, max_size=3))
def test_a_decision_replays_from_its_json(sequence: list[Observation]) -> None:
    of: InferenceDeployment = OF
    memory = learnt(of)
    for i, seen in enumerate(sequence):
        decision = decide(of, seen, memory, NOW + i)
        again = decide(
            InferenceDeployment.model_validate_json(of.model_dump_json()),
            Observation.from_json(seen.to_json()),
            Memory.from_json(memory.to_json()),
            NOW + i,
        )
        assert again.to_json() == decision.to_json()
        assert Decision.from_json(decision.to_json()).to_json() == decision.to_json()
        memory = decision.memory
