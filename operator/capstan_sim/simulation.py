"""One simulation: a workload, a fleet, and somebody who steers it tick by tick.

Knows neither how a replica works nor how anybody decides. Everything that happens is decided by the inputs: equal
inputs give equal records, to the last bit.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol, TypedDict, Unpack

from capstan_api.limits import BatchLimits
from capstan_sim.book import Book
from capstan_sim.engine import Engine
from capstan_sim.errors import SimulationError
from capstan_sim.fleet import Fleet, PodPhase
from capstan_sim.policy import Policy, Setting
from capstan_sim.replica import Replica
from capstan_sim.step_time import StepModel
from capstan_sim.view import observe
from capstan_sim.workload import Workload

DRAIN_S = 1800.0
"""After the last arrival; what is not answered by then has missed."""


@dataclass
class Record:
    """What came of a simulation."""

    setting: Setting
    book: Book
    fleet: Fleet
    end_s: float
    """The last arrival: what is counted per time is counted up to it."""
    targets: list[tuple[float, int]] = field(default_factory=list)
    """Every change of the wanted number of replicas, beginning with the first number."""
    limits: list[tuple[float, BatchLimits]] = field(default_factory=list)
    """Every change of the limits, likewise."""
    timeline: list[tuple[float, int, int, int]] = field(default_factory=list)
    """At every tick: moment, ready replicas, those that are becoming so, and requests in the system."""

    def wanted(self, replicas: int, now: float) -> None:
        if not self.targets or self.targets[-1][1] != replicas:
            self.targets.append((now, replicas))

    def limited(self, limits: BatchLimits, now: float) -> None:
        if not self.limits or self.limits[-1][1] != limits:
            self.limits.append((now, limits))


class Controller(Protocol):
    """Steers a fleet in whatever way it likes. `begin` makes the first replicas."""

    interval_s: float

    def begin(self, fleet: Fleet, record: Record) -> None: ...

    def turn(self, fleet: Fleet, record: Record, *, blind: bool) -> None:
        """One tick at `fleet.now`; `blind` while no metrics reach the control plane."""
        ...


class TargetController:
    """Carries out a policy's targets: cancels the newest that start, then drains the least loaded."""

    def __init__(self, policy: Policy) -> None:
        self.interval_s = policy.interval_s
        self._policy = policy

    def begin(self, fleet: Fleet, record: Record) -> None:
        for _ in range(record.setting.initial_replicas):
            fleet.launch(ready=True)
        record.wanted(record.setting.initial_replicas, fleet.now)

    def turn(self, fleet: Fleet, record: Record, *, blind: bool) -> None:
        target = record.targets[-1][1]
        if not blind:
            answer = self._policy.decide(observe(fleet, target))
            target = min(max(answer.replicas, 0), record.setting.max_replicas)
            if answer.limits is not None:
                fleet.set_limits(answer.limits)
                record.limited(answer.limits, fleet.now)
        record.wanted(target, fleet.now)
        scale(fleet, target)


def scale(fleet: Fleet, target: int) -> None:
    """Launch what is missing; of what is too much cancel the newest that start, then drain the least loaded."""
    live = fleet.phase(PodPhase.PENDING, PodPhase.STARTING, PodPhase.READY)
    for _ in range(target - len(live)):
        fleet.launch()
    surplus = len(live) - target
    if surplus <= 0:
        return
    starting = [pod for pod in live if pod.phase is not PodPhase.READY][::-1]
    for pod in starting[:surplus]:
        fleet.stop(pod)
    ready = [pod for pod in live if pod.phase is PodPhase.READY and pod.replica is not None]
    # The oldest first among equals: so were the published figures made that ours stand beside.
    ready.sort(key=lambda pod: (pod.replica.outstanding if pod.replica is not None else 0, pod.number))
    for pod in ready[: max(0, surplus - len(starting))]:
        fleet.drain(pod)


class Circumstances(TypedDict, total=False):
    """What surrounds a simulation."""

    priorities: tuple[int, ...]
    """Of the SLO classes."""
    ttft_s: tuple[float, ...]
    """Thresholds of the SLO classes that engines know of, infinite where there is none; empty for none at all."""
    engine: Callable[[StepModel, BatchLimits, Book], Engine]
    """Makes what runs in a pod."""
    prepare: Callable[[Fleet], None] | None
    """Sets timers for what befalls the fleet."""
    blind: Iterable[tuple[float, float]]
    """Spans without metrics."""


def simulate(
    workload: Workload,
    setting: Setting,
    controller: Controller,
    *,
    progress: Callable[[float], None] | None = None,
    **circumstances: Unpack[Circumstances],
) -> Record:
    """Run `workload` to its end. `progress` is told the share of the time that is over."""
    for record in turns(workload, setting, controller, **circumstances):
        if progress is not None:
            progress(min(1.0, record.fleet.now / record.end_s if record.end_s else math.inf))
    return record


def simulate_together(simulations: Iterable[Iterator[Record]]) -> list[Record]:
    """Run several to their ends, turn by turn: for controllers that share something. Their intervals must be equal."""
    simulations = list(simulations)
    records = [next(simulation) for simulation in simulations]
    for _ in zip_longest(*simulations):
        pass
    return records


def turns(
    workload: Workload,
    setting: Setting,
    controller: Controller,
    *,
    priorities: tuple[int, ...] = (0,),
    ttft_s: tuple[float, ...] = (),
    engine: Callable[[StepModel, BatchLimits, Book], Engine] = Replica,
    prepare: Callable[[Fleet], None] | None = None,
    blind: Iterable[tuple[float, float]] = (),
) -> Iterator[Record]:
    """A simulation turn by turn: the record before the first one, and after each, always the same object."""
    longest = int((workload.prompt + workload.output).max())
    if longest > setting.model.kv_tokens:
        raise SimulationError(
            f"a request needs {longest} tokens of KV, one replica holds {setting.model.kv_tokens}; cap the prompts"
        )
    spans = tuple(blind)
    book = Book(workload, priorities, setting.model.outside_s, ttft_s)
    fleet = Fleet(book, setting.model, setting.limits, setting.cold_start_s, engine, setting.rule)
    end_s = float(workload.arrival[-1])
    record = Record(setting, fleet.book, fleet, end_s)
    record.limited(setting.limits, 0.0)
    controller.begin(fleet, record)
    if prepare is not None:
        prepare(fleet)
    yield record
    tick, num = 0, len(workload)
    last_s = end_s + DRAIN_S
    while fleet.now < last_s and len(fleet.book.done_times) < num:
        tick += 1
        fleet.run(min(tick * controller.interval_s, last_s))
        book = fleet.book
        ready = len(fleet.phase(PodPhase.READY))
        coming = len(fleet.phase(PodPhase.PENDING, PodPhase.STARTING))
        record.timeline.append((fleet.now, ready, coming, book.num_arrived - len(book.done_times)))
        controller.turn(fleet, record, blind=any(start <= fleet.now < stop for start, stop in spans))
        yield record
