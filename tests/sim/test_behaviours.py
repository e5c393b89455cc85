"""How the real law behaves in a simulated fleet when load steps, bursts, swings or stops, and when things break.

One replica here serves about ten requests a second within the thresholds; a cold start takes a minute.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scenes import poisson, resource, slo

from capstan_sim.events import Event
from capstan_sim.measure import attained, flips, gpu_hours
from capstan_sim.policy import Objective
from capstan_sim.simulation import Record
from capstan_sim.step_time import StepModel
from capstan_sim.what_if import LAW, WhatIf
from capstan_sim.workload import Workload

MODEL = StepModel(0.02, 6e-5, 4e-4, 3e-8, 0.0, 200_000)
COLD_START_S = 60.0
MAX_REPLICAS = 12
OBJECTIVE = Objective(ttft_s=1.0, tpot_s=0.08, percent=99.0)


def arrivals(
    rate: Callable[[float], float],
    seconds: float,
    prompt: Callable[[float], int] = lambda at: 500,
    output: int = 60,
    seed: int = 5,
) -> Workload:
    """A Poisson process of `rate(t)` requests/s, with `prompt(t)` prompt and `output` output tokens on average."""
    rng = np.random.default_rng(seed)
    times = poisson(rng, rate, seconds)
    prompts = [max(1, round(prompt(at) * rng.gamma(4.0, 0.25))) for at in times]
    outputs = np.maximum(1, rng.geometric(1 / output, len(times)))
    return Workload.of(times, prompts, outputs)


def play(
    workload: Workload,
    *events: str,
    initial: int = 1,
    cold_start_s: float = COLD_START_S,
    model: StepModel = MODEL,
    **scaling,
) -> Record:
    deployment = resource(
        "behaviour",
        slo("chat", 1000, 80),
        scaling={"minReplicas": 1, "maxReplicas": MAX_REPLICAS, **scaling},
        disruption={"drainTimeoutSeconds": 600},
    )
    question = WhatIf(
        workload, deployment, model, cold_start_s, initial, events=tuple(Event.parse(text) for text in events)
    )
    record = question.ask(LAW)
    assert list(question.objectives.values()) == [OBJECTIVE]
    assert len(record.book.done_times) == len(record.book), "no request is ever lost"
    return record


def targets_between(record: Record, start: float, stop: float) -> list[int]:
    """The target at `start` and its changes up to `stop`."""
    before = [replicas for at, replicas in record.targets if at <= start][-1:]
    return before + [replicas for at, replicas in record.targets if start < at < stop]


def share(record: Record, start: float, stop: float) -> float:
    at = np.array(record.book.arrival)
    chosen = (at >= start) & (at < stop)
    return float(attained(record, [OBJECTIVE])[chosen].mean())


def fewest_static(workload: Workload) -> int:
    """The smallest constant fleet in which 99 % are good."""
    for replicas in range(1, MAX_REPLICAS + 1):
        if share(play(workload, initial=replicas, mode="Manual", replicas=replicas), 0, math.inf) >= 0.99:
            return replicas
    raise AssertionError("the load is too much for every fleet")


def test_a_constant_rate_launches_nothing_after_the_warm_up():
    record = play(arrivals(lambda at: 15.0, 1500.0), initial=3)
    settled = targets_between(record, 400.0, math.inf)
    assert all(after <= before for before, after in pairwise(settled)), settled
    assert share(record, 400.0, math.inf) >= 0.99


@pytest.mark.parametrize(("calm", "initial"), [(6.0, 2), (12.0, 3), (18.0, 4)])
def test_a_step_of_four_is_recovered_within_a_cold_start_and_a_minute(calm, initial):
    before_s = 400.0
    record = play(arrivals(lambda at: calm if at < before_s else 4 * calm, before_s + 500.0), initial=initial)
    need = fewest_static(arrivals(lambda at: 4 * calm, 300.0))
    assert max(targets_between(record, before_s, math.inf)) <= math.ceil(1.5 * need)
    recovered_s = before_s + COLD_START_S + 60.0
    assert share(record, recovered_s, math.inf) >= 0.99


def test_a_sine_of_two_cold_starts_is_not_followed():
    period_s = 2 * COLD_START_S
    record = play(arrivals(lambda at: 14 + 8 * math.sin(2 * math.pi * at / period_s), 1200.0), initial=3)
    after_warm_up = targets_between(record, 240.0, math.inf)
    assert flips(after_warm_up) <= 2 * (1200.0 - 240.0) / period_s


def test_longer_prompts_at_the_same_rate_shrink_the_token_budget_at_once_and_raise_the_fleet():
    # Attention is dear here, so that a token deep in a prompt costs twice what one at its beginning does.
    dear = replace(MODEL, attention_pair_s=5e-8)
    record = play(arrivals(lambda at: 6.0, 600.0, lambda at: 200 if at < 300 else 1600), initial=2, model=dear)
    before = [replicas for at, replicas in record.targets if at < 300][-1]
    assert max(targets_between(record, 300.0, math.inf)) > before
    assert share(record, 300.0 + COLD_START_S + 60.0, math.inf) >= 0.97
    budgets = [(at, limits.max_batched_tokens) for at, limits in record.limits]
    shrunk = [tokens for at, tokens in budgets if 300.0 < at <= 315.0]
    assert shrunk, "two adjustments after the first long prompts were seen"
    assert shrunk[-1] < [tokens for at, tokens in budgets if at <= 300.0][-1]


def test_attainment_is_alike_at_every_cold_start():
    swinging = arrivals(lambda at: 15 - 11 * math.cos(2 * math.pi * at / 2400), 2400.0)
    shares = [share(play(swinging, initial=2, cold_start_s=s), 0.0, math.inf) for s in (30.0, 120.0, 300.0)]
    assert min(shares) >= 0.99
    assert max(shares) - min(shares) <= 0.01


def test_bursts_from_idle_are_met_alike():
    rate = lambda at: 12.0 if at % 400 < 150 else 0.2  # noqa: E731
    record = play(arrivals(rate, 1600.0), initial=1)
    bursts = [share(record, start, start + 150) for start in (400.0, 800.0, 1200.0)]
    assert max(bursts) - min(bursts) < 0.1
    assert min(bursts) >= 0.9


def test_replicas_that_die_are_replaced_once_each():
    record = play(arrivals(lambda at: 20.0, 900.0), "reclaim@300", "fail@600", initial=4, minReplicas=4, maxReplicas=4)
    pods = [*record.fleet.pods, *record.fleet.retired]
    assert len(pods) == 5
    assert sorted(pod.created_at for pod in pods)[-1] == pytest.approx(300.0, abs=4.0)
    assert sum(pod.restarts for pod in pods) == 1


def test_lost_metrics_take_no_replica_away_though_load_rises():
    rate = lambda at: 8.0 if at < 300 else 14.0  # noqa: E731
    record = play(arrivals(rate, 1000.0), "blind@290:590", initial=2)
    during = targets_between(record, 290.0, 590.0)
    assert all(after >= before for before, after in pairwise(during)), during
    on_return = targets_between(record, 588.0, 700.0)
    assert flips(on_return) == 0
    assert share(record, 590.0 + COLD_START_S + 60.0, math.inf) >= 0.98


def test_replicas_of_a_schedule_are_ready_when_its_window_opens_and_leave_after_it():
    opens_s, closes_s = 600.0, 1200.0
    # A simulation begins at 8:00 UTC.
    peak = {"name": "peak", "cron": "10 8 * * *", "durationSeconds": int(closes_s - opens_s), "minReplicas": 4}
    record = play(arrivals(lambda at: 4.0, 1500.0), initial=1, schedules=[peak])
    ready = [(at, replicas) for at, replicas, _, _ in record.timeline if at < 1500.0]
    assert {replicas for at, replicas in ready if at < opens_s - COLD_START_S} == {1}
    assert {replicas for at, replicas in ready if opens_s - 2 <= at < closes_s} == {4}
    assert ready[-1][1] == 1


def test_a_day_is_served_with_three_quarters_of_what_a_static_fleet_costs():
    day_s = 7200.0
    rate = lambda at: 7 - 6 * math.cos(2 * math.pi * at / day_s)  # noqa: E731
    # Long requests, so that few of them are a day.
    long = {"prompt": lambda at: 2000, "output": 240}
    # Twenty minutes of look-back would be a sixth of it.
    look_back = {"scaleDown": {"stabilizationWindowSeconds": 600}}
    record = play(arrivals(rate, day_s, **long), initial=1, behavior=look_back)
    peak = arrivals(lambda at: rate(at + day_s / 2 - 150), 300.0, **long)
    assert share(record, 0.0, math.inf) >= 0.99
    assert gpu_hours(record) <= 0.75 * fewest_static(peak) * day_s / 3600


def test_less_than_a_request_in_five_minutes_does_not_flap_between_none_and_one():
    rare = Workload.of([200.0 + 301.0 * n for n in range(10)], [300] * 10, [40] * 10)
    assert [replicas for _, replicas in play(rare, initial=1, minReplicas=0).targets] == [1]


def test_zero_wakes_for_one_request_and_serves_it_as_soon_as_a_replica_can():
    quiet = Workload.of([200.0, 201.0, 700.0], [300, 300, 300], [40, 40, 40])
    record = play(quiet, initial=1, minReplicas=0, idle={"scaleToZeroAfterSeconds": 60})
    assert [replicas for _, replicas in record.targets] == [1, 0, 1, 0, 1]
    ttft_s = np.array(record.book.first) - np.array(record.book.arrival)
    assert max(ttft_s) <= COLD_START_S + 3.0
