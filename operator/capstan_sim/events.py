"""What befalls a fleet: replicas that die, spot capacity taken back, metrics lost, pods without room, slow hardware.

    fail@600         at 600 s the busiest replica's process dies; its pod starts again at once, cold
    reclaim@600=2    the two busiest pods vanish, and only the policy replaces them
    blind@600:900    no metrics reach the control plane
    no-room@600:900  pods launched meanwhile stay pending until 900 s
    slow-start@600:900=3   pods whose start begins meanwhile take three times the cold start
    slow-steps@0:900=1.5   pods launched meanwhile have hardware whose steps take one and a half times as long

Knows no policy. Requests on a pod that dies or vanishes are retried elsewhere.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from capstan_sim.errors import SimulationError
from capstan_sim.fleet import Fleet, Pod, PodPhase


class Kind(StrEnum):
    FAIL = "fail"
    RECLAIM = "reclaim"
    BLIND = "blind"
    NO_ROOM = "no-room"
    SLOW_START = "slow-start"
    SLOW_STEPS = "slow-steps"


_AT_ONE_MOMENT = (Kind.FAIL, Kind.RECLAIM)
_WITH_FACTOR = (Kind.SLOW_START, Kind.SLOW_STEPS)


@dataclass(frozen=True, slots=True)
class Event:
    """Seconds count from the start. `amount` is a number of replicas or a factor, whatever the kind needs."""

    kind: Kind
    start_s: float
    stop_s: float
    amount: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Event":
        """Read `KIND@START[:STOP][=AMOUNT]`; raises `SimulationError`."""
        name, at, rest = text.partition("@")
        span, _, amount = rest.partition("=")
        start, colon, stop = span.partition(":")
        if name not in list(Kind) or not at:
            raise SimulationError(
                f"event {text!r}: KIND@START[:STOP][=AMOUNT] is needed, KIND one of {', '.join(Kind)}"
            )
        kind = Kind(name)
        try:
            event = cls(kind, float(start), float(stop) if colon else math.inf, float(amount or 1))
        except ValueError:
            raise SimulationError(f"event {text!r}: START, STOP and AMOUNT must be numbers") from None
        if not 0 <= event.start_s < event.stop_s:
            raise SimulationError(f"event {text!r}: it must start at 0 or later and stop after that")
        if kind in _AT_ONE_MOMENT and (colon or event.amount < 1 or event.amount != int(event.amount)):
            raise SimulationError(f"event {text!r}: {kind} happens at one moment, to a whole number of replicas")
        if kind not in _AT_ONE_MOMENT and not colon:
            raise SimulationError(f"event {text!r}: {kind} lasts, so it needs START:STOP")
        if not 0 < event.amount < math.inf or (amount and kind not in (*_AT_ONE_MOMENT, *_WITH_FACTOR)):
            raise SimulationError(f"event {text!r}: the amount after = makes no sense for {kind}")
        return event


def blind_spans(events: Iterable[Event]) -> tuple[tuple[float, float], ...]:
    """When no metrics reach the control plane."""
    return tuple((event.start_s, event.stop_s) for event in events if event.kind is Kind.BLIND)


def prepare(fleet: Fleet, events: Iterable[Event]) -> None:
    """Have the events befall `fleet`, which has not run yet."""
    events = tuple(events)
    rooms = [event for event in events if event.kind is Kind.NO_ROOM]
    fleet.scheduling_s = lambda now: max((e.stop_s - now for e in rooms if e.start_s <= now < e.stop_s), default=0.0)
    fleet.start_factor = _factor(events, Kind.SLOW_START)
    fleet.step_factor = _factor(events, Kind.SLOW_STEPS)
    for event in events:
        if event.kind in _AT_ONE_MOMENT:
            act = fleet.restart if event.kind is Kind.FAIL else fleet.stop
            fleet.at(event.start_s, partial(_strike, fleet, act, int(event.amount)))


def _factor(events: Iterable[Event], kind: Kind) -> Callable[[float], float]:
    spans = [event for event in events if event.kind is kind]
    return lambda now: math.prod(event.amount for event in spans if event.start_s <= now < event.stop_s)


def _strike(fleet: Fleet, act: Callable[[Pod], None], number: int) -> None:
    """Do `act` to the busiest ready pods, the oldest among equals."""
    loads = [(pod.replica.outstanding, -pod.number, pod) for pod in fleet.phase(PodPhase.READY) if pod.replica]
    for _, _, pod in sorted(loads, key=lambda load: load[:2], reverse=True)[:number]:
        act(pod)
