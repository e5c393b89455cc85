"""What the numbers say: rates, lengths, latencies and load from counter differences over a sliding window.

Decides nothing, and trusts nothing that `judgement` has not passed.

The surprising idea: idle and blind are told apart by the heartbeat. An engine without requests still counts turns of
its loop; one whose heartbeat stands still has told us nothing, however fresh the scrape looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, mul

import numpy as np
from pydantic import Field

from capstan_operator.decide.curve import Array
from capstan_operator.decide.judgement import Judge
from capstan_operator.decide.observation import (
    ClassCounters,
    EngineMetrics,
    Gateway,
    GatewayMetrics,
    Observation,
    Phase,
    Replica,
    StepSample,
)
from capstan_operator.decide.values import Value
from capstan_operator.decide.window import Progress, Slot, Track, Window, Work, appended, unseen

# Requests after which a mean length is half forgotten.
_LENGTH_MEMORY = 1000.0
_ENOUGH_LENGTHS = 3
_NAMED = 3
_SERVED = attrgetter("waiting", "running", "prefill_backlog", "kv_usage", "kv_blocks")
# Steps that are looked at in one turn: of all engines together, and of each one when there are many.
_MOST_SAMPLES, _FEWEST_SAMPLES = 128, 2


class Objectives(Value):
    """What is read for one SLO class: which quantiles."""

    name: str
    ttft_share: float = 0.95
    tpot_share: float = 0.95


class Lengths(Value):
    """Mean request, forgetting slowly. `cached` is the share of prompt tokens found in the prefix cache."""

    prompt: float = 0
    output: float = 0
    cached: float = 0
    weight: float = 0

    @property
    def is_known(self) -> bool:
        return self.weight >= _ENOUGH_LENGTHS and self.output > 0

    @property
    def computed_prompt(self) -> float:
        """Prompt tokens that have to be computed."""
        return max(1.0, self.prompt * (1 - self.cached))

    @property
    def context(self) -> float:
        """Mean context of a decoding sequence."""
        return self.prompt + self.output / 2

    def learn(self, counted: ClassCounters, cached: float | None) -> "Lengths":
        """The means after the requests that were completed."""
        requests = counted.completed
        if requests <= 0:
            return self
        weight = self.weight * 0.5 ** (requests / _LENGTH_MEMORY) + requests
        share = requests / weight
        return Lengths.made(
            prompt=self.prompt + share * (counted.prompt_tokens / requests - self.prompt),
            output=self.output + share * (counted.output_tokens / requests - self.output),
            cached=self.cached if cached is None else self.cached + share * (cached - self.cached),
            weight=weight,
        )


class ClassSignals(Value):
    """One SLO class in the window; latencies at the class's own percentiles, in seconds."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    num_ttft: float = 0
    num_tpot: float = 0
    attainment: float | None = None
    requests: float = 0
    """Requests counted against the SLO."""
    arrivals_per_s: float = 0


class Signals(Value):
    """What a decision is made from. `None` means not known, never zero."""

    window_s: float
    """How much of the window has been seen."""
    gateway_seen: bool
    """A gateway was read and believed in this very look."""
    complete: bool
    """Every ready gateway and replica was read and believed in this very look."""
    blind: tuple[str, ...] = ()
    """Ready replicas and gateways that have told nothing for longer than is tolerated."""
    faults: tuple[str, ...] = ()
    """What could not be read or was not believed, one clause each."""
    rejected: tuple[str, ...] = ()
    """Those of them that were read and not believed."""
    classes: dict[str, ClassSignals] = Field(default_factory=dict)
    arrivals_per_s: float | None = None
    output_tokens_per_s: float | None = None
    active: bool = False
    """A request arrived, waits, or is being served; unknown counts as active."""
    waiting: float = 0
    running: float = 0
    held: float = 0
    prefill_backlog: float = 0
    """Prompt tokens on engines that are not computed yet."""
    in_flight: float = 0
    kv_usage: float = 0
    """The fullest replica's."""
    num_serving: int = 0
    """Ready replicas that were read and believed."""
    kv_held: float = 0
    """Blocks in use, of all replicas."""
    kv_blocks: float = 0
    """The smallest replica's."""
    utilisation: float | None = None
    decode_sequences: float = 0
    """Mean in a step, of the busiest part of the window."""
    context_tokens: float = 0
    """Sum over the sequences of a step, likewise."""
    inter_token_s: float | None = None
    """Mean step time as a decoding sequence sees it, over the window."""
    load: dict[str, float] = Field(default_factory=dict)
    """Requests on each replica."""
    cache_value: dict[str, float] = Field(default_factory=dict)
    """Prompt tokens that each replica's prefix cache has lately saved."""

    @property
    def queue(self) -> float:
        return self.waiting + self.held

    @property
    def missing(self) -> str:
        """Who told nothing, for people; a few names however many they are."""
        more = len(self.blind) - _NAMED
        return ", ".join(self.blind[:_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Reading:
    """Signals together with what the look has taught."""

    signals: Signals
    window: Window
    lengths: Lengths
    delta: Mapping[str, ClassCounters]
    """Per class, since the last look."""
    samples: Array
    """[N, 7] Some of those that engines took since then, as rows of `StepSample`."""
    seconds: float = 0
    """Between this look and the one before; 0 when nothing new was seen."""


def read(
    observation: Observation,
    window: Window,
    lengths: Lengths,
    objectives: Iterable[Objectives],
    now: float,
    *,
    span_s: float,
    max_age_s: float,
) -> Reading:
    """Judge one observation and set it against the window of the earlier ones."""
    objectives = tuple(objectives)
    judge = Judge(observation, now, max_age_s)
    gateways, engines = judge.gateways({o.name for o in objectives}), judge.engines()
    delta = judge.deltas(gateways, window.gateways)
    tracks, progress, samples = _followed(observation.replicas, engines, window.tracks)
    for counted in delta.values():
        lengths = lengths.learn(counted, progress.cached_share)

    slots, before = window.slots, window.looked_at
    looked_at = max((metrics.at for metrics in gateways.values()), default=before)
    seconds = looked_at - before if before is not None and looked_at is not None else 0.0
    if before is not None and looked_at is not None and seconds > 0:
        new = Slot.made(start=before, end=looked_at, classes=delta, progress=progress)
        slots = appended(slots, new, span_s, now)
    existing = {gateway.id for gateway in observation.gateways}
    window = Window.made(
        since=now if window.since is None else window.since,
        gateways={key: told for key, told in {**window.gateways, **gateways}.items() if key in existing},
        met={gateway.id: window.met.get(gateway.id, now) for gateway in observation.ready_gateways},
        looked_at=looked_at,
        slots=slots,
        tracks=tracks,
    )
    reporting, doors = _reporting(observation, window), _reporting_gateways(observation, window)
    blind = _blind(observation, window, reporting, doors, now, max_age_s)
    whole = all(r.id in engines for r in reporting) and all(g.id in gateways for g in doors)
    signals = _signals(
        observation, window, gateways, engines, delta, objectives, complete=bool(gateways) and not blind and whole
    )
    faults = (*observation.faults, *judge.faults)
    signals = signals.changed(blind=blind, faults=faults, rejected=tuple(judge.faults))
    return Reading(
        signals=signals, window=window, lengths=lengths, delta=delta, samples=samples, seconds=max(0.0, seconds)
    )


def _followed(
    replicas: Iterable[Replica], engines: Mapping[str, EngineMetrics], tracks: Mapping[str, Track]
) -> tuple[dict[str, Track], Progress, Array]:
    """The tracks after this look, what all engines together have done since the last, and steps of theirs [N, 7]."""
    after: dict[str, Track] = {}
    steps, times = list[StepSample](), list[float]()
    passed = [(0.0, 0.0, 0.0, 0.0)]
    most = max(_FEWEST_SAMPLES, _MOST_SAMPLES // max(1, len(engines)))
    for replica in replicas:
        key = replica.id
        before, metrics = tracks.get(key), engines.get(key)
        if before is not None and not before.is_of(replica):
            before = None
        if metrics is not None:
            track = after[key] = Track.after(replica, metrics, before)
            if metrics.samples:
                chosen, each = unseen(metrics.samples, before, most)
                steps += chosen
                times += [each] * len(chosen)
            passed.append(track.since(before))
        elif before is not None:
            after[key] = before
    width = len(StepSample._fields)
    rows = np.fromiter(chain.from_iterable(steps), np.float64, width * len(steps)).reshape(-1, width)
    replica_s, busy_s, queries, hits = map(sum, zip(*passed, strict=True))
    progress = Progress.made(
        work=Work.of(rows, np.array(times)),
        replica_seconds=replica_s,
        busy_seconds=busy_s,
        prefix_queries=queries,
        prefix_hits=hits,
    )
    return after, progress, rows


def _reporting(observation: Observation, window: Window) -> tuple[Replica, ...]:
    """Replicas that ought to report: the ready ones, and those that did in this life and then fell silent.

    A world calls the latter starting again, because they take no requests; they may still work on those they have.
    """
    live = observation.with_phase(Phase.READY, Phase.STARTING)
    return tuple(replica for replica in live if replica.phase is Phase.READY or replica.id in window.tracks)


def _blind(
    observation: Observation,
    window: Window,
    reporting: Iterable[Replica],
    doors: Sequence[Gateway],
    now: float,
    max_age_s: float,
) -> tuple[str, ...]:
    """Of those that ought to report, replicas and gateways without a sign of life for too long."""
    since = window.since if window.since is not None else now
    blind = []
    for replica in reporting:
        track = window.tracks.get(replica.id)
        # Having just become ready is a sign of life too.
        last_word = max(since, track.advanced_at if track else 0.0, replica.ready_at or replica.created_at)
        if now - last_word > max_age_s:
            blind.append(replica.id)
    for gateway in doors:
        told = window.gateways.get(gateway.id)
        last_word = max(since, told.at if told else 0.0, window.met.get(gateway.id, 0.0))
        if now - last_word > max_age_s:
            blind.append(gateway.id)
    if observation.gateways and not doors and now - max(since, window.looked_at or 0.0) > max_age_s:
        blind.append("every gateway")
    return tuple(blind)


def _reporting_gateways(observation: Observation, window: Window) -> tuple[Gateway, ...]:
    """Gateways that ought to report: the ready ones, and those that did and then fell silent without leaving."""
    return tuple(
        gateway
        for gateway in observation.gateways
        if gateway.phase is Phase.READY or (gateway.id in window.gateways and gateway.phase is not Phase.DRAINING)
    )


def _signals(
    observation: Observation,
    window: Window,
    gateways: Mapping[str, GatewayMetrics],
    engines: Mapping[str, EngineMetrics],
    delta: Mapping[str, ClassCounters],
    objectives: Iterable[Objectives],
    *,
    complete: bool,
) -> Signals:
    """Everything but who is blind and what is wrong."""
    in_flight: dict[str, float] = {}
    for metrics in gateways.values():
        for key, requests in metrics.in_flight.items():
            in_flight[key] = in_flight.get(key, 0.0) + requests
    held = sum((metrics.held for metrics in gateways.values()), 0.0)
    served = [_SERVED(engines[replica.id]) for replica in observation.replicas if replica.id in engines]
    waiting, running, backlog, usage, blocks = zip(*served, strict=True) if served else ((0.0,),) * 5
    arrived = any(counted.arrived > 0 for counted in delta.values())
    total, seen_s = window.total, window.seen_s
    work, peak = total.progress.work, window.busiest
    classes = {o.name: _class_signals(o, total, seen_s) for o in objectives}
    # Requests on a replica, by the gateway's count or its own, whichever knows of more.
    own = {key: metrics.running + metrics.waiting for key, metrics in engines.items()}
    return Signals.made(
        window_s=seen_s,
        gateway_seen=bool(gateways),
        complete=complete,
        classes=classes,
        arrivals_per_s=sum(c.arrivals_per_s for c in classes.values()) if seen_s > 0 else None,
        output_tokens_per_s=work.decode_tokens / seen_s if seen_s > 0 else None,
        active=not complete or arrived or sum(waiting) + sum(running) + held + sum(in_flight.values()) > 0,
        waiting=sum(waiting),
        running=sum(running),
        held=held,
        prefill_backlog=sum(backlog),
        in_flight=sum(in_flight.values(), 0.0),
        kv_usage=max(usage),
        num_serving=sum(1 for r in observation.replicas if r.phase is Phase.READY and r.id in engines),
        kv_held=sum(map(mul, usage, blocks)),
        kv_blocks=min(blocks),
        utilisation=total.progress.utilisation,
        decode_sequences=peak.sequences,
        context_tokens=peak.context,
        inter_token_s=work.inter_token_s,
        load={r.id: max(in_flight.get(r.id, 0.0), own.get(r.id, 0.0)) for r in observation.replicas},
        cache_value={key: track.recent_hits for key, track in window.tracks.items() if track.recent_hits >= 1},
    )


def _class_signals(objectives: Objectives, total: Slot, seen_s: float) -> ClassSignals:
    counted = total.classes.get(objectives.name, ClassCounters())
    return ClassSignals.made(
        ttft_s=counted.ttft.quantile(objectives.ttft_share),
        tpot_s=counted.tpot.quantile(objectives.tpot_share),
        num_ttft=counted.ttft.total,
        num_tpot=counted.tpot.total,
        attainment=min(1.0, counted.slo_good / counted.slo_total) if counted.slo_total > 0 else None,
        requests=counted.slo_total,
        arrivals_per_s=counted.arrived / seen_s if seen_s > 0 else 0.0,
    )
