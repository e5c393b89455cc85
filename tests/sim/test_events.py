"""What befalls a fleet, and how it is written."""

import pytest

from capstan_api.limits import BatchLimits
from capstan_sim.book import Book
from capstan_sim.errors import SimulationError
from capstan_sim.events import Event, Kind, blind_spans, prepare
from capstan_sim.fleet import Fleet, PodPhase
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

MODEL = StepModel(0.01, 1e-4, 1e-4, 0.0, 0.0, 10_000)


def fleet_under(*texts: str, arrivals: int = 200) -> Fleet:
    workload = Workload.of([0.5 * i for i in range(arrivals)], [100] * arrivals, [100] * arrivals)
    fleet = Fleet(Book(workload), MODEL, BatchLimits(max_sequences=8, max_batched_tokens=256), cold_start_s=10.0)
    prepare(fleet, [Event.parse(text) for text in texts])
    return fleet


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("fail@600", Event(Kind.FAIL, 600.0, float("inf"), 1.0)),
        ("reclaim@1.5=2", Event(Kind.RECLAIM, 1.5, float("inf"), 2.0)),
        ("blind@0:300", Event(Kind.BLIND, 0.0, 300.0)),
        ("slow-start@60:90=2.5", Event(Kind.SLOW_START, 60.0, 90.0, 2.5)),
    ],
)
def test_events_are_read(text, event):
    assert Event.parse(text) == event


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("explode@5", "KIND one of fail, reclaim"),
        ("fail", "KIND@START"),
        ("fail@soon", "must be numbers"),
        ("fail@5:9", "happens at one moment"),
        ("fail@5=1.5", "whole number of replicas"),
        ("blind@5", "needs START:STOP"),
        ("blind@9:5", "stop after that"),
        ("blind@5:9=3", "makes no sense for blind"),
        ("slow-start@5:9=0", "makes no sense for slow-start"),
        ("no-room@-1:9", "start at 0 or later"),
        ("slow-steps@0:9=nan", "makes no sense"),
    ],
)
def test_a_faulty_event_says_what_is_wrong(text, fault):
    with pytest.raises(SimulationError, match=fault):
        Event.parse(text)


def test_a_failure_hits_the_busiest_replica_and_its_pod_starts_again():
    fleet = fleet_under("fail@20")
    pods = [fleet.launch(ready=True)]
    fleet.run(19.0)
    pods.append(fleet.launch(ready=True))
    fleet.run(21.0)
    assert [(pod.phase, pod.restarts) for pod in pods] == [(PodPhase.STARTING, 1), (PodPhase.READY, 0)]
    fleet.run(500.0)
    assert len(fleet.book.done_times) == 200


def test_reclaimed_pods_are_gone():
    fleet = fleet_under("reclaim@20=2")
    for _ in range(3):
        fleet.launch(ready=True)
    fleet.run(21.0)
    assert len(fleet.pods) == 1
    assert [pod.retired_at for pod in fleet.retired] == [20.0, 20.0]


def test_starts_are_slow_only_meanwhile():
    fleet = fleet_under("slow-start@20:40=3")
    before = fleet.launch()
    fleet.run(30.0)
    meanwhile = fleet.launch()
    fleet.run(40.0)
    after = fleet.launch()
    fleet.run(200.0)
    assert [pod.ready_at for pod in (before, meanwhile, after)] == [10.0, 60.0, 50.0]


def test_without_room_pods_wait_and_then_take_a_cold_start():
    fleet = fleet_under("no-room@20:40")
    fleet.run(25.0)
    pod = fleet.launch()
    fleet.run(39.0)
    assert pod.phase is PodPhase.PENDING
    fleet.run(200.0)
    assert pod.ready_at == 50.0


def test_slow_hardware_is_slow_for_life():
    fleet = fleet_under("slow-steps@0:1=2", arrivals=1)
    slow = fleet.launch(ready=True)
    fleet.run(5.0)
    quick = fleet.launch(ready=True)
    assert slow.model.seconds(10, 2, 30, 5) == pytest.approx(2 * quick.model.seconds(10, 2, 30, 5))
    assert slow.model.kv_tokens == quick.model.kv_tokens


def test_spans_without_metrics_are_told_apart():
    assert blind_spans([Event.parse("fail@3"), Event.parse("blind@4:9")]) == ((4.0, 9.0),)
