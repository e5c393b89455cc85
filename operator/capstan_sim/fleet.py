"""The pods of a simulated deployment: launched, ready, drained, retired, killed, and the router in front of them.

Knows no policy and no metrics beyond its own books. A pod costs from its launch to its retirement, cold start and
draining included. Requests go to the ready pod that `router` names; while none is ready they wait at the gateway. None
is ever dropped: a resource's bounds on waiting are not imitated, so that what a product would refuse counts as late.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush

from capstan_api.limits import BatchLimits
from capstan_sim.book import Book
from capstan_sim.engine import Engine
from capstan_sim.replica import Replica
from capstan_sim.router import Router, Rule
from capstan_sim.step_time import StepModel


class PodPhase(StrEnum):
    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"
    RETIRED = "Retired"


@dataclass(slots=True, eq=False)
class Pod:
    """One replica's process with its life; `replica` is there while it serves."""

    id: str
    number: int
    model: StepModel
    created_at: float
    ready_at: float = math.inf
    phase: PodPhase = PodPhase.STARTING
    replica: Engine | None = None
    starting_since: float = math.inf
    """When its present or last start began."""
    restarts: int = 0
    retired_at: float = math.inf
    work: int = 0
    """Outstanding, as its router counts it."""

    def seconds(self, until: float) -> float:
        """How long it has cost something since 0."""
        return max(0.0, min(self.retired_at, until) - max(0.0, self.created_at))


class Fleet:
    """Pods in order of their launch. `now` is the moment that everything has been advanced to."""

    def __init__(
        self,
        book: Book,
        model: StepModel,
        limits: BatchLimits,
        cold_start_s: float,
        engine: Callable[[StepModel, BatchLimits, Book], Engine] = Replica,
        rule: Rule = Rule.GATEWAY,
    ) -> None:
        self.book = book
        self.model = model
        self.limits = limits
        """Of pods that become ready."""
        self.cold_start_s = cold_start_s
        self.now = 0.0
        self.pods: list[Pod] = []
        """Those that live."""
        self.retired: list[Pod] = []
        self.gateway: deque[int] = deque()
        """Requests that no replica has yet."""
        self._preemptions_by_gone = 0
        self.starts: list[tuple[float, float]] = []
        """From launch or restart to ready, or to when the pod was given up, of every start that is over."""
        self.scheduling_s: Callable[[float], float] = lambda now: 0.0
        """How long a pod launched now stays pending before its cold start begins."""
        self.start_factor: Callable[[float], float] = lambda now: 1.0
        """By how much a cold start that begins now is longer."""
        self.step_factor: Callable[[float], float] = lambda now: 1.0
        """By how much steps of a pod launched now are longer."""
        self._engine = engine
        self._router = Router(book, rule)
        self._ready: list[Pod] = []
        self._pod_of: dict[int, Pod] = {}
        self._runs: list[tuple[float, int, Engine]] = []
        """Heap of ends of runs. An entry whose replica has another end by now is stale."""
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._num_timers = self._num_pods = self._num_pushed = 0

    @property
    def num_preemptions(self) -> int:
        """Of all replicas there ever were."""
        living = sum(pod.replica.num_preemptions for pod in self.pods if pod.replica is not None)
        return living + self._preemptions_by_gone

    def phase(self, *phases: PodPhase) -> list[Pod]:
        return [pod for pod in self.pods if pod.phase in phases]

    def at(self, moment: float, act: Callable[[], None]) -> None:
        """Have `act` done at `moment`; in order of their making when several fall together."""
        self._num_timers += 1
        heappush(self._timers, (moment, self._num_timers, act))

    def launch(self, name: str | None = None, *, ready: bool = False) -> Pod:
        """A new pod; one that is `ready` was launched a cold start ago."""
        self._num_pods += 1
        model = self.model.slowed(self.step_factor(self.now))
        created_at = self.now - (self.cold_start_s if ready else 0.0)
        pod = Pod(id=name or f"pod-{self._num_pods}", number=self._num_pods, model=model, created_at=created_at)
        self.pods.append(pod)
        if ready:
            self._become_ready(pod)
        else:
            self._start(pod)
        return pod

    def stop(self, pod: Pod) -> None:
        """End a pod at once. Requests that it has are retried elsewhere."""
        self._lose(pod)
        if pod.phase in (PodPhase.PENDING, PodPhase.STARTING):
            self.starts.append((pod.starting_since, self.now))
        pod.phase, pod.retired_at = PodPhase.RETIRED, self.now
        self.pods.remove(pod)
        self.retired.append(pod)

    def drain(self, pod: Pod) -> None:
        """No new requests; retired when it has answered those that it has."""
        assert pod.phase is PodPhase.READY, f"{pod.id} is {pod.phase}: only a ready pod drains"
        assert pod.replica is not None, "a ready pod has an engine"
        pod.phase = PodPhase.DRAINING
        self._ready.remove(pod)
        if not pod.replica.outstanding:
            self.stop(pod)

    def restart(self, pod: Pod) -> None:
        """Its process dies and starts again, cold; requests that it has are retried elsewhere."""
        self._lose(pod)
        if pod.phase in (PodPhase.PENDING, PodPhase.STARTING):
            self.starts.append((pod.starting_since, self.now))
        pod.restarts += 1
        pod.ready_at = math.inf
        self._start(pod)

    def set_limits(self, limits: BatchLimits, pod: Pod | None = None) -> None:
        """For one pod, or for all and those to come."""
        if pod is None:
            self.limits = limits
        for one in self.pods if pod is None else (pod,):
            if one.replica is not None and one.phase is not PodPhase.RETIRED:
                one.replica.set_limits(limits, self.now)
                self._watch(one.replica)

    def run(self, until: float) -> None:
        """Advance to `until`: arrivals, ends of runs and timers up to it, in order of time."""
        book, runs, timers, arrival = self.book, self._runs, self._timers, self.book.arrival
        index, num = book.num_arrived, len(arrival)
        while True:
            next_arrival = arrival[index] if index < num else math.inf
            next_run = runs[0][0] if runs else math.inf
            next_timer = timers[0][0] if timers else math.inf
            if next_timer <= next_arrival and next_timer <= next_run:
                if next_timer > until:
                    break
                self.now = next_timer
                heappop(timers)[2]()
            elif next_arrival <= next_run:
                if next_arrival > until:
                    break
                self.now = next_arrival
                index += 1
                book.num_arrived = index
                self._route(index - 1)
            else:
                if next_run > until:
                    break
                _, _, replica = heappop(runs)
                if replica.until != next_run:
                    continue
                self.now = next_run
                replica.advance()
                if replica.until != math.inf:
                    self._num_pushed += 1
                    heappush(runs, (replica.until, self._num_pushed, replica))
                elif id(replica) in self._pod_of:
                    pod = self._pod_of[id(replica)]
                    if pod.phase is PodPhase.DRAINING and not replica.outstanding:
                        self.stop(pod)
        self.now = until

    def _route(self, request: int) -> None:
        pod = self._router.choose(self._ready)
        if pod is None:
            self.gateway.append(request)
            return
        replica = pod.replica
        assert replica is not None, "a ready pod has an engine"
        self._router.give(request, pod)
        before = replica.until
        self.book.pod[request] = pod.number
        replica.submit(request, self.now)
        if replica.until != before:
            self._watch(replica)

    def _watch(self, replica: Engine) -> None:
        if replica.until != math.inf:
            self._num_pushed += 1
            heappush(self._runs, (replica.until, self._num_pushed, replica))

    def _start(self, pod: Pod) -> None:
        pod.phase, pod.starting_since = PodPhase.PENDING, self.now
        restart = pod.restarts

        def begin() -> None:
            if pod.phase is PodPhase.PENDING and pod.restarts == restart:
                pod.phase = PodPhase.STARTING
                self.at(self.now + self.cold_start_s * self.start_factor(self.now), ready)

        def ready() -> None:
            if pod.phase is PodPhase.STARTING and pod.restarts == restart:
                self.starts.append((pod.starting_since, self.now))
                self._become_ready(pod)

        pending_s = self.scheduling_s(self.now)
        if pending_s > 0:
            self.at(self.now + pending_s, begin)
        else:
            begin()

    def _become_ready(self, pod: Pod) -> None:
        pod.phase, pod.ready_at = PodPhase.READY, self.now
        pod.replica = replica = self._engine(pod.model, self.limits, self.book)
        self._pod_of[id(replica)] = pod
        self._ready.append(pod)
        waiting, self.gateway = self.gateway, deque()
        for request in waiting:
            self._route(request)

    def _lose(self, pod: Pod) -> None:
        """Take the pod's requests from it and route them again."""
        replica, pod.replica = pod.replica, None
        if replica is None:
            return
        if pod in self._ready:
            self._ready.remove(pod)
        self._preemptions_by_gone += replica.num_preemptions
        lost = replica.abandon()
        # No stale entry may keep it alive under a number that a later replica could get.
        del self._pod_of[id(replica)]
        for request in lost:
            self.book.lost(request)
        for request in lost:
            self._route(request)
