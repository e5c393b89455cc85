"""Pods: what they cost, who gets requests, and that none is lost whatever befalls them."""

import pytest

from capstan_api.limits import BatchLimits
from capstan_sim.book import Book
from capstan_sim.fleet import Fleet, PodPhase
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

MODEL = StepModel(0.01, 1e-4, 1e-4, 0.0, 0.0, 10_000)
LIMITS = BatchLimits(max_sequences=8, max_batched_tokens=256)


def fleet_of(arrivals: list[float], cold_start_s: float = 30.0, output: int = 50) -> Fleet:
    workload = Workload.of(arrivals, [100] * len(arrivals), [output] * len(arrivals))
    return Fleet(Book(workload), MODEL, LIMITS, cold_start_s)


def test_a_pod_is_ready_exactly_a_cold_start_after_its_launch():
    fleet = fleet_of([100.0])
    fleet.run(7.0)
    pod = fleet.launch()
    fleet.run(36.999)
    assert pod.phase is PodPhase.STARTING
    fleet.run(37.0)
    assert pod.phase is PodPhase.READY
    assert pod.ready_at == 37.0


def test_a_pod_costs_from_its_launch_to_the_end_of_its_draining():
    fleet = fleet_of([10.0], output=101)
    pod = fleet.launch(ready=True)
    fleet.run(10.5)
    fleet.drain(pod)
    assert pod.phase is PodPhase.DRAINING
    fleet.run(1000.0)
    # One prompt of 100 tokens, then 100 steps of one sequence.
    end = 10.0 + (0.01 + 0.01) + 100 * (0.01 + 1e-4)
    assert pod.retired_at == pytest.approx(end)
    assert pod.seconds(1000.0) == pytest.approx(end)
    assert pod.seconds(5.0) == 5.0


def test_an_idle_pod_that_drains_retires_at_once():
    fleet = fleet_of([10.0])
    pod = fleet.launch(ready=True)
    fleet.run(2.0)
    fleet.drain(pod)
    assert (pod.phase, pod.retired_at) == (PodPhase.RETIRED, 2.0)
    assert fleet.pods == []


def test_a_pod_that_is_stopped_while_it_starts_never_becomes_ready():
    fleet = fleet_of([1.0])
    pod = fleet.launch()
    fleet.run(29.0)
    fleet.stop(pod)
    fleet.run(60.0)
    assert pod.seconds(60.0) == 29.0
    assert len(fleet.gateway) == 1


def test_requests_wait_at_the_gateway_until_a_replica_is_ready():
    fleet = fleet_of([1.0, 2.0, 3.0])
    fleet.launch()
    fleet.run(29.0)
    assert list(fleet.gateway) == [0, 1, 2]
    fleet.run(100.0)
    assert all(30.0 <= started < 30.1 for started in fleet.book.started)
    assert all(done > 30 for done in fleet.book.done)


def test_a_request_goes_to_the_replica_with_fewest():
    fleet = fleet_of([1.0, 1.01, 1.02, 1.03])
    pods = [fleet.launch(ready=True) for _ in range(2)]
    fleet.run(1.1)
    assert [pod.replica.outstanding for pod in pods if pod.replica] == [2, 2]


def test_a_replica_that_dies_loses_no_request_and_starts_once():
    fleet = fleet_of([0.1 * i for i in range(1, 60)])
    first, second = fleet.launch(ready=True), fleet.launch(ready=True)
    fleet.run(3.0)
    held = first.replica.outstanding if first.replica else 0
    assert held > 0
    fleet.restart(first)
    assert (first.phase, first.restarts) == (PodPhase.STARTING, 1)
    assert second.replica is not None
    fleet.run(3.0 + 29.0)
    assert first.phase is PodPhase.STARTING
    fleet.run(200.0)
    assert first.ready_at == 33.0
    assert len(fleet.book.done_times) == 59
    assert sum(fleet.book.num_retries) == held
    assert len(fleet.pods) == 2


def test_a_restart_while_starting_begins_the_cold_start_anew():
    fleet = fleet_of([200.0])
    pod = fleet.launch()
    fleet.run(20.0)
    fleet.restart(pod)
    fleet.run(49.0)
    assert pod.phase is PodPhase.STARTING
    fleet.run(50.0)
    assert pod.phase is PodPhase.READY


def test_pods_without_room_stay_pending_and_then_start():
    fleet = fleet_of([200.0])
    fleet.scheduling_s = lambda now: max(0.0, 100.0 - now)
    pod = fleet.launch()
    fleet.run(99.0)
    assert pod.phase is PodPhase.PENDING
    fleet.run(129.0)
    assert pod.phase is PodPhase.STARTING
    fleet.run(130.0)
    assert pod.phase is PodPhase.READY


def test_new_limits_hold_from_the_next_step_on():
    fleet = fleet_of([1.0] * 8, output=1000)
    pod = fleet.launch(ready=True)
    fleet.run(4.0)
    assert pod.replica is not None
    assert pod.replica.num_running == 8
    fleet.set_limits(BatchLimits(max_sequences=2, max_batched_tokens=4))
    before = pod.replica.num_generated(4.0)
    fleet.run(8.0)
    # Nothing is preempted; four of the eight get a token in each step.
    assert pod.replica.num_running == 8
    steps = 4.0 / (0.01 + 4e-4)
    assert pod.replica.num_generated(8.0) - before == pytest.approx(4 * steps, abs=12)
