"""The real law in simulated time: it sees what happens, and what it asks for is done."""

from typing import Any

import numpy as np
import pytest
from scenes import resource, slo

from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import render
from capstan_operator.decide.seen.observation import Observation, Phase, Replica
from capstan_operator.decide.seen.steps import StepSample, rows
from capstan_sim.control_plane import EPOCH_S, ControlPlane, objectives
from capstan_sim.engine import Run
from capstan_sim.events import Event, blind_spans, prepare
from capstan_sim.measure import summary
from capstan_sim.policy import Setting
from capstan_sim.router import Rule
from capstan_sim.simulation import Record, simulate
from capstan_sim.step_time import StepModel
from capstan_sim.what_if import LAW, WhatIf
from capstan_sim.workload import Workload

MODEL = StepModel(0.02, 2e-4, 1e-3, 0.0, 0.0, 20_000)


def deployment(**scaling: Any) -> InferenceDeployment:
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 60}}
    return resource(
        "small",
        slo("chat", 1000, 80, percentile=95, priority=10),
        slo("batch", 30_000, percentile=95, objectivePercent="80"),
        batching={"maxSequences": 64, "maxBatchedTokens": 1024, "minBatchedTokens": 128},
        scaling={"maxReplicas": 6, "behavior": behavior, **scaling},
        disruption={"drainTimeoutSeconds": 600},
    )


def taken(replica: Replica) -> list[StepSample]:
    """The steps that its engine tells."""
    told = rows(replica.metrics.samples if replica.metrics else b"")
    return [StepSample(int(number), *others) for number, *others in told.tolist()]


def load(*phases: tuple[float, float]) -> Workload:
    """Poisson arrivals, (requests/s, until second) after one another; every fifth request is of the second class."""
    rng = np.random.default_rng(3)
    arrivals, now = [], 0.0
    for rate, until in phases:
        while now < until:
            now += rng.exponential(1 / rate)
            arrivals.append(now)
    num = len(arrivals)
    made = Workload.of(arrivals, rng.integers(50, 600, num), rng.integers(10, 120, num))
    return Workload(made.arrival, made.prompt, made.output, made.cached, (np.arange(num) % 5 == 4).astype(np.int64))


def play(workload: Workload, resource, *events: str, initial: int = 1) -> tuple[Record, list[Observation]]:
    seen: list[Observation] = []
    control = ControlPlane(resource, on_turn=lambda observation, _: seen.append(observation))
    setting = Setting(MODEL, objectives(resource)[0], 300.0, 60.0, 6, 20.0, initial, render.envelope(resource).top)
    parsed = [Event.parse(text) for text in events]
    record = simulate(
        workload,
        setting,
        control,
        priorities=(10, 0),
        ttft_s=tuple(objective.ttft_s for objective in objectives(resource)),
        prepare=lambda fleet: prepare(fleet, parsed),
        blind=blind_spans(parsed),
    )
    return record, seen


@pytest.fixture(scope="module")
def surge():
    return play(load((1.0, 120.0), (12.0, 420.0), (1.0, 700.0)), deployment())


def test_the_fleet_follows_a_surge_up_and_down(surge):
    record, _ = surge
    targets = [replicas for _, replicas in record.targets]
    assert max(targets) > 1
    assert targets[-1] < max(targets)
    assert len(record.book.done_times) == len(record.book)
    assert summary(record, objectives(deployment())).attainment_percent > 50


def test_counters_tell_what_came(surge):
    record, seen = surge
    counters = seen[-1].gateways[0].metrics.classes
    of_class = np.array(record.book.slo_class)
    assert [counters[name].arrived for name in ("chat", "batch")] == [(of_class == 0).sum(), (of_class == 1).sum()]
    prompts = np.array(record.book.prompt)
    assert [counters[name].arrived_tokens for name in ("chat", "batch")] == [
        prompts[of_class == 0].sum(),
        prompts[of_class == 1].sum(),
    ]
    finished = [i for i, at in enumerate(record.book.done) if at <= record.timeline[-1][0]]
    assert sum(c.completed for c in counters.values()) == len(finished)
    assert sum(c.output_tokens for c in counters.values()) == sum(record.book.output[i] for i in finished)
    assert counters["chat"].ttft.total == counters["chat"].arrived
    good = [
        (record.book.first[i] - record.book.arrival[i]) <= 1.0
        and (record.book.done[i] - record.book.first[i]) / max(1, record.book.output[i] - 1) <= 0.08
        for i in finished
        if record.book.slo_class[i] == 0
    ]
    assert counters["chat"].slo_good == sum(good)


def test_every_observation_is_one_that_the_operator_would_believe(surge):
    _, seen = surge
    for observation in seen[::20]:
        # Built without validation; here validation is made up for.
        assert Observation.from_json(observation.to_json()) == observation


def test_step_samples_are_the_steps_and_come_once(surge):
    _, seen = surge
    last: dict[tuple[str, float], int] = {}
    counted = 0
    for observation in seen:
        for replica in observation.replicas:
            # An id that has become free is given again.
            life = (replica.id, replica.created_at)
            for sample in taken(replica):
                assert sample.number > last.get(life, 0)
                last[life] = sample.number
                seconds = MODEL.seconds(*sample[3:])
                assert sample.seconds == pytest.approx(seconds)
                counted += 1
    assert counted > 1000


def test_limits_of_the_law_reach_the_engines_and_are_leased(surge):
    _, seen = surge
    states = [replica.limits for observation in seen for replica in observation.replicas if replica.limits]
    assert any(state.limits != state.defaults for state in states)
    assert all(state.lease_remaining_seconds is None or state.lease_remaining_seconds > 0 for state in states)


def test_without_metrics_nothing_is_scaled_down_and_leases_run_out():
    record, seen = play(load((6.0, 600.0)), deployment(), "blind@200:400")
    blind = [o for o in seen if 1_800_000_200 <= o.at < 1_800_000_400]
    assert all(o.gateways[0].metrics is None and not any(r.metrics for r in o.replicas) for o in blind)
    during = [replicas for at, replicas in record.targets if 200 <= at < 400]
    before = [replicas for at, replicas in record.targets if at < 200][-1]
    assert all(replicas >= before for replicas in during)
    after = next(o for o in seen if o.at >= 1_800_000_400)
    ready = [r for r in after.replicas if r.phase is Phase.READY]
    assert ready
    assert all(r.limits.limits == r.limits.defaults for r in ready)


def test_a_pod_that_vanishes_is_replaced_and_one_that_crashed_is_not_doubled():
    record, seen = play(load((6.0, 500.0)), deployment(minReplicas=3), "reclaim@200", "fail@350", initial=3)
    lost = [pod for pod in record.fleet.retired if pod.retired_at == 200.0]
    assert len(lost) == 1
    replacement = [pod for pod in [*record.fleet.pods, *record.fleet.retired] if 200.0 <= pod.created_at <= 204.0]
    assert len(replacement) == 1
    restarted = [r for o in seen if o.at > 1_800_000_352 for r in o.replicas if r.restarts == 1]
    assert restarted[0].phase is Phase.STARTING
    assert {r.id for r in restarted} == {restarted[0].id}
    samples = [sample for r in restarted for sample in taken(r)]
    assert samples[0].number < 100
    assert not [pod for pod in [*record.fleet.pods, *record.fleet.retired] if 350.0 <= pod.created_at <= 360.0]
    assert len(record.book.done_times) == len(record.book)


def test_engines_know_the_thresholds_except_under_the_published_protocol():
    workload, resource = load((3.0, 20.0)), deployment()
    books = [WhatIf(workload, resource, MODEL, rule=rule).ask(LAW).book for rule in Rule]
    told, untold = books
    patience = np.array(told.first_token_due) - np.array(told.arrival)
    assert patience == pytest.approx(np.where(workload.slo_class == 0, 1.0, 30.0))
    assert np.isinf(untold.first_token_due).all()


@pytest.mark.parametrize(("number", "growth_s"), [(1, 0.0), (7, 1e-5), (11, 3e-4)])
def test_steps_are_told_as_their_run_has_them(number: int, growth_s: float) -> None:
    run = Run(7, 12.345, 5, 0, 3, 900, 0, 0.0123, growth_s)
    told = [StepSample(*step) for step in run.steps(number, EPOCH_S)]
    assert [step.number for step in told] == [n for n in range(7, 12) if n >= number]
    for step in told:
        place = step.number - 7
        assert step.time == EPOCH_S + run.end(place + 1)
        assert step.seconds == 0.0123 + place * growth_s
        assert (step.decode_sequences, step.context_tokens) == (3, 900 + 3 * place)
