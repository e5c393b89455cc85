"""From a policy's answers to pods, and from what came of it to figures."""

import json

import numpy as np
import pytest

from capstan_api.limits import BatchLimits
from capstan_sim.errors import SimulationError
from capstan_sim.measure import attained, flips, gpu_hours, summary
from capstan_sim.policy import Objective, Observation, Setting, Target
from capstan_sim.report import report
from capstan_sim.simulation import Record, TargetController, simulate
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

MODEL = StepModel(0.01, 1e-4, 1e-4, 0.0, 0.0, 10_000, num_gpus=4)
OBJECTIVE = Objective(ttft_s=0.5, tpot_s=0.05)
LIMITS = BatchLimits(max_sequences=16, max_batched_tokens=256)


class Scripted:
    """Wants `steps[i]` at its i-th tick, then the last of them for ever; keeps what it saw."""

    interval_s = 10.0

    def __init__(self, *steps: Target | int) -> None:
        self.steps = [step if isinstance(step, Target) else Target(step) for step in steps]
        self.seen: list[Observation] = []

    def decide(self, seen: Observation) -> Target:
        self.seen.append(seen)
        return self.steps[min(len(self.seen), len(self.steps)) - 1]


def requests(rate: float, seconds: float, prompt: int = 100, output: int = 50) -> Workload:
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    return Workload.of(arrivals, [prompt] * len(arrivals), [output] * len(arrivals))


def play(policy: Scripted, workload: Workload, *, initial: int = 1, cold_start_s: float = 30.0, **options) -> Record:
    setting = Setting(MODEL, OBJECTIVE, 100.0, 50.0, 6, cold_start_s, initial, LIMITS)
    return simulate(workload, setting, TargetController(policy), **options)


def test_pods_follow_the_target():
    record = play(Scripted(1, 3, 3, 3, 3, 3, 3, 2, 2), requests(2.0, 200.0), initial=1)
    assert record.targets == [(0.0, 1), (20.0, 3), (80.0, 2)]
    ready = {at: ready for at, ready, _, _ in record.timeline}
    assert (ready[40.0], ready[50.0], ready[90.0]) == (1, 3, 2)
    pods = [*record.fleet.pods, *record.fleet.retired]
    assert sorted(pod.created_at for pod in pods) == [-30.0, 20.0, 20.0]
    assert gpu_hours(record) == pytest.approx(4 * sum(pod.seconds(record.end_s) for pod in pods) / 3600)


def test_scaling_down_cancels_what_starts_before_it_drains():
    record = play(Scripted(3, 2), requests(2.0, 100.0), initial=1)
    assert [pod.created_at for pod in record.fleet.retired] == [10.0]
    assert record.fleet.retired[0].retired_at == 20.0
    assert record.fleet.retired[0].number == 3


def test_targets_stay_within_what_is_allowed():
    record = play(Scripted(99, -5), requests(1.0, 60.0), initial=1)
    assert [replicas for _, replicas in record.targets] == [1, 6, 0]


def test_a_fleet_that_falls_to_nothing_loses_no_request():
    record = play(Scripted(0, 0, 0, 1), requests(2.0, 60.0), initial=1)
    assert len(record.book.done_times) == len(record.book)
    assert summary(record, [OBJECTIVE]).attainment_percent < 60


def test_while_blind_the_policy_is_not_asked_and_dead_replicas_are_replaced_all_the_same():
    policy = Scripted(2)

    def lose_one(fleet):
        fleet.at(45.0, lambda: fleet.stop(fleet.pods[0]))

    record = play(policy, requests(2.0, 200.0), initial=2, blind=[(30.0, 100.0)], prepare=lose_one)
    assert [seen.now for seen in policy.seen][:4] == [10.0, 20.0, 100.0, 110.0]
    assert record.fleet.pods[-1].created_at == 50.0
    assert len(record.targets) == 1


def test_limits_are_passed_on_and_counted():
    narrow = BatchLimits(max_sequences=2, max_batched_tokens=64)
    record = play(Scripted(1, Target(1, narrow), Target(1, narrow)), requests(2.0, 60.0))
    assert record.limits == [(0.0, LIMITS), (20.0, narrow)]
    assert record.fleet.pods[0].replica.limits == narrow
    assert summary(record, [OBJECTIVE]).limit_changes == 1


def test_an_observation_tells_what_really_came():
    policy = Scripted(2)
    record = play(policy, requests(4.0, 300.0), initial=2)
    book = record.book
    for seen in policy.seen[3:25]:
        span = min(60.0, seen.now)
        arrived = [i for i, at in enumerate(book.arrival) if seen.now - span < at <= seen.now]
        done = [i for i, at in enumerate(book.done) if seen.now - span < at <= seen.now]
        assert seen.arrival_rate == pytest.approx(len(arrived) / span)
        assert sorted(seen.tpot_s) == pytest.approx(sorted((book.done[i] - book.first[i]) / 49 for i in done))
        present = [
            max(0.0, min(seen.now, book.done[i]) - max(seen.now - span, at)) for i, at in enumerate(book.arrival)
        ]
        assert seen.concurrency_60s == pytest.approx(sum(present) / span)
        assert seen.concurrency == sum(1 for i, at in enumerate(book.arrival) if at <= seen.now < book.done[i])


def test_a_request_is_good_when_both_thresholds_are_met():
    record = play(Scripted(1), requests(1.0, 50.0))
    strict = Objective(ttft_s=0.5, tpot_s=0.0101)
    assert attained(record, [OBJECTIVE]).all()
    # Alone, a token takes 10.1 ms; with company it takes more.
    alone = attained(record, [strict])
    assert 0 < alone.sum() < len(record.book)
    assert not attained(record, [Objective(ttft_s=0.001, tpot_s=1.0)]).any()


def test_in_an_overload_engines_that_know_the_threshold_keep_more_requests_in_time():
    """In order of arrival everybody waits, at last, longer than the threshold."""
    load = requests(38.0, 120.0, prompt=300, output=30)
    in_order, yielding = (play(Scripted(2), load, initial=2, ttft_s=ttft_s) for ttft_s in ((), (0.5,)))
    shares = [attained(record, [OBJECTIVE]).mean() for record in (in_order, yielding)]
    assert len(yielding.book.done_times) == len(load), "late ones are served all the same"
    assert shares[1] > shares[0] + 0.1


def test_flips_are_changes_against_the_direction_before():
    assert flips([1, 3, 2, 4, 5, 1]) == 3
    assert flips([4, 3, 2]) == 0


def test_every_miss_has_one_cause():
    policy = Scripted(1, 1, 1, 1, 1, 1, 3)

    def strike(fleet):
        fleet.at(150.0, lambda: fleet.restart(fleet.pods[0]))

    record = play(policy, requests(9.0, 220.0, output=200), cold_start_s=60.0, prepare=strike)
    objective = Objective(ttft_s=0.5, tpot_s=0.0115, percent=90.0)
    figures = report(record, {"chat": objective})
    missed = len(record.book) - int(attained(record, [objective]).sum())
    assert sum(figures["violations"].values()) == missed
    assert figures["classes"]["chat"]["violations"] == figures["violations"]
    assert {"failure", "cold_start", "queue", "tpot"} <= figures["violations"].keys()
    assert figures["violations"]["failure"] <= sum(1 for retries in record.book.num_retries if retries)
    assert figures["violation_minutes"] == sum(
        1 for row in figures["timeline"] if row["attainment_percent"] is not None and row["attainment_percent"] < 90
    )


def test_the_report_is_plain_and_the_same_every_time():
    def made() -> str:
        record = play(Scripted(1, 2, 1), requests(4.0, 120.0))
        return json.dumps(report(record, {"chat": OBJECTIVE}, cost_per_replica_hour=2.5))

    assert made() == made()
    figures = json.loads(made())
    assert figures["cost"] == pytest.approx(figures["gpu_hours"] / 4 * 2.5, abs=0.006)
    assert figures["timeline"][1]["requests_per_s"] > 0


def test_a_request_that_no_replica_can_hold_is_refused_at_once():
    with pytest.raises(SimulationError, match="needs 20050 tokens of KV"):
        play(Scripted(1), requests(1.0, 10.0, prompt=20_000))


def test_what_a_cold_start_has_made_late_is_told_apart_whatever_the_interval_of_the_policy():
    def causes(interval_s: float) -> dict[str, int]:
        policy = Scripted(1)
        policy.interval_s = interval_s
        record = play(policy, requests(6.0, 200.0), prepare=lambda f: f.at(100.0, lambda: f.restart(f.pods[0])))
        return report(record, {"chat": OBJECTIVE})["violations"]

    assert causes(10.0) == causes(90.0)
    # Thirty seconds without a replica, and what had gathered meanwhile.
    assert causes(10.0)["cold_start"] > 6.0 * 30 * 0.9
