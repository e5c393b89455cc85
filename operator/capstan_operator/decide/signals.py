"""What the numbers say: rates, lengths, latencies and load from counter differences over a sliding window.

Judges every number before it is used: what is not finite, runs backwards or is absurd is dropped, named in `faults`,
and then counts as missing. Decides nothing.

The surprising idea: idle and blind are told apart by the heartbeat. An engine without requests still counts turns of
its loop; one whose heartbeat stands still has told us nothing, however fresh the scrape looks.
"""

from collections.abc import Iterable

from pydantic import Field

from capstan_operator.decide.observation import (
    ClassCounters,
    EngineMetrics,
    GatewayMetrics,
    Observation,
    Phase,
    Replica,
    StepSample,
    believable,
)
from capstan_operator.decide.values import Value

_NUM_SLOTS = 8
# Requests after which a mean length is half forgotten.
_LENGTH_MEMORY = 100.0


class Objectives(Value):
    """What is read for one SLO class: which quantiles."""

    name: str
    ttft_share: float = 0.95
    tpot_share: float = 0.95


class Work(Value):
    """Sums over engine steps; `seconds` is the time that they took."""

    seconds: float = 0
    sequence_seconds: float = 0
    context_seconds: float = 0
    decode_tokens: float = 0

    def plus(self, other: "Work") -> "Work":
        return Work(**{name: value + getattr(other, name) for name, value in self})


class Slot(Value):
    """What came between two moments."""

    start: float
    end: float
    classes: dict[str, ClassCounters] = Field(default_factory=dict)
    work: Work = Work()
    busy_seconds: float = 0
    replica_seconds: float = 0

    def plus(self, later: "Slot") -> "Slot":
        none = ClassCounters()
        names = sorted({*self.classes, *later.classes})
        return Slot(
            start=self.start,
            end=later.end,
            classes={name: self.classes.get(name, none).plus(later.classes.get(name, none)) for name in names},
            work=self.work.plus(later.work),
            busy_seconds=self.busy_seconds + later.busy_seconds,
            replica_seconds=self.replica_seconds + later.replica_seconds,
        )


class Track(Value):
    """The last believable counters of one replica."""

    created_at: float
    restarts: int
    at: float
    heartbeat: float
    advanced_at: float
    """When the heartbeat was last seen to move."""
    last_step: int = 0
    busy_seconds: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0

    def is_of(self, replica: Replica) -> bool:
        return (self.created_at, self.restarts) == (replica.created_at, replica.restarts)


class Window(Value):
    """The state that the next look is compared with. Lost over a restart, and filled again within seconds."""

    since: float | None = None
    """When this window began to look: silence from before then is nobody's fault."""
    gateway: GatewayMetrics | None = None
    slots: tuple[Slot, ...] = ()
    tracks: dict[str, Track] = Field(default_factory=dict)


class Lengths(Value):
    """Mean request, forgetting slowly. `cached` is the share of prompt tokens found in the prefix cache."""

    prompt: float = 0
    output: float = 0
    cached: float = 0
    weight: float = 0

    @property
    def is_known(self) -> bool:
        return self.weight >= 3 and self.output > 0

    @property
    def computed_prompt(self) -> float:
        return max(1.0, self.prompt * (1 - self.cached))

    @property
    def context(self) -> float:
        """Mean context of a decoding sequence."""
        return self.prompt + self.output / 2

    def learn(self, requests: float, prompt_tokens: float, output_tokens: float, cached: float | None) -> "Lengths":
        if requests <= 0:
            return self
        weight = self.weight * 0.5 ** (requests / _LENGTH_MEMORY) + requests
        share = requests / weight
        return Lengths(
            prompt=self.prompt + share * (prompt_tokens / requests - self.prompt),
            output=self.output + share * (output_tokens / requests - self.output),
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
    complete: bool
    """Gateway and every ready replica were read and believed in this very look."""
    blind: tuple[str, ...] = ()
    """Ready replicas, and `gateway`, that have told nothing for longer than is tolerated."""
    faults: tuple[str, ...] = ()
    classes: dict[str, ClassSignals] = Field(default_factory=dict)
    arrivals_per_s: float | None = None
    output_tokens_per_s: float | None = None
    active: bool = False
    """A request arrived, waits, or is being served; unknown counts as active."""
    waiting: float = 0
    running: float = 0
    held: float = 0
    in_flight: float = 0
    kv_usage: float = 0
    """The fullest replica's."""
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

    @property
    def queue(self) -> float:
        return self.waiting + self.held


class Reading(Value):
    """Signals together with what the look has taught."""

    signals: Signals
    window: Window
    lengths: Lengths
    delta: dict[str, ClassCounters] = Field(default_factory=dict)
    """Per class, since the last look."""
    samples: tuple[StepSample, ...] = ()


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
    """Judge one observation against the window of the earlier ones."""
    objectives = tuple(objectives)
    faults = list(observation.faults)
    gateway = _judged_gateway(observation, {o.name for o in objectives}, now, max_age_s, faults)
    engines = _judged_engines(observation, now, max_age_s, faults)

    delta = _class_deltas(gateway, window.gateway, faults)
    tracks: dict[str, Track] = {}
    samples: list[StepSample] = []
    busy_s = replica_s = queries = hits = 0.0
    for replica in observation.replicas:
        before = window.tracks.get(replica.id)
        if before is not None and not before.is_of(replica):
            before = None
        metrics = engines.get(replica.id)
        if metrics is None:
            if before is not None:
                tracks[replica.id] = before
            continue
        track, fresh = _advance(replica, metrics, before)
        tracks[replica.id] = track
        samples += fresh
        if before is not None and track.at > before.at and track.busy_seconds >= before.busy_seconds:
            busy_s += track.busy_seconds - before.busy_seconds
            replica_s += track.at - before.at
        if before is not None and track.prefix_queries >= before.prefix_queries:
            queries += track.prefix_queries - before.prefix_queries
            hits += max(0.0, track.prefix_hits - before.prefix_hits)

    for counters in delta.values():
        cached = min(1.0, hits / queries) if queries > 0 else None
        lengths = lengths.learn(counters.completed, counters.prompt_tokens, counters.output_tokens, cached)

    slots = window.slots
    if gateway is not None and window.gateway is not None and gateway.at > window.gateway.at and delta:
        new = Slot(
            start=window.gateway.at,
            end=gateway.at,
            classes=delta,
            work=_work(samples),
            busy_seconds=busy_s,
            replica_seconds=replica_s,
        )
        slots = _appended(slots, new, span_s, now)
    since = now if window.since is None else window.since
    window = Window(since=since, gateway=gateway or window.gateway, slots=slots, tracks=tracks)

    ready = observation.with_phase(Phase.READY)
    blind = [r.id for r in ready if now - max(since, _last_word(r, tracks.get(r.id))) > max_age_s]
    gateway_word = window.gateway.at if window.gateway is not None else since
    if observation.gateway is not None and now - gateway_word > max_age_s:
        blind.append("gateway")
    complete = gateway is not None and not blind and all(r.id in engines for r in ready)
    served = [engines[r.id] for r in observation.replicas if r.id in engines]
    in_flight = dict(gateway.in_flight) if gateway else {}
    held = gateway.held if gateway else 0.0
    arrived = any(c.arrived > 0 for c in delta.values())
    waiting, running = sum(m.waiting for m in served), sum(m.running for m in served)
    seen_s = sum(s.end - s.start for s in slots)
    classes = {o.name: _class_signals(o, slots, seen_s) for o in objectives}
    peak = _busiest(slots)
    total = _sum_work(slots)
    replica_seconds = sum(s.replica_seconds for s in slots)
    signals = Signals(
        window_s=seen_s,
        gateway_seen=gateway is not None,
        complete=complete,
        blind=tuple(blind),
        faults=tuple(faults),
        classes=classes,
        arrivals_per_s=sum(c.arrivals_per_s for c in classes.values()) if seen_s > 0 else None,
        output_tokens_per_s=total.decode_tokens / seen_s if seen_s > 0 else None,
        active=not complete or arrived or waiting + running + held + sum(in_flight.values()) > 0,
        waiting=waiting,
        running=running,
        held=held,
        in_flight=sum(in_flight.values()),
        kv_usage=max((m.kv_usage for m in served), default=0),
        kv_blocks=min((m.kv_blocks for m in served), default=0),
        utilisation=min(1.0, sum(s.busy_seconds for s in slots) / replica_seconds) if replica_seconds > 0 else None,
        decode_sequences=peak.sequence_seconds / peak.seconds if peak.seconds > 0 else 0,
        context_tokens=peak.context_seconds / peak.seconds if peak.seconds > 0 else 0,
        inter_token_s=total.sequence_seconds / total.decode_tokens if total.decode_tokens > 0 else None,
        load={
            r.id: max(in_flight.get(r.id, 0), engines[r.id].running + engines[r.id].waiting if r.id in engines else 0)
            for r in observation.replicas
        },
    )
    return Reading(signals=signals, window=window, lengths=lengths, delta=delta, samples=tuple(samples))


def _judged_gateway(
    observation: Observation, names: set[str], now: float, max_age_s: float, faults: list[str]
) -> GatewayMetrics | None:
    metrics = observation.gateway.metrics if observation.gateway else None
    if metrics is None:
        return None
    if not now - max_age_s <= metrics.at <= now + max_age_s:
        faults.append(f"gateway: metrics are not from the last {max_age_s:g} s")
        return None
    for name in metrics.classes.keys() & names:
        if not metrics.classes[name].is_believable:
            faults.append(f"gateway: counters of class {name} are not believable")
            return None
    if not believable(metrics.held, *metrics.in_flight.values()):
        faults.append("gateway: requests held or in flight are not believable")
        return None
    known = {replica.id for replica in observation.replicas}
    return metrics.model_copy(
        update={
            "classes": {name: metrics.classes.get(name, ClassCounters()) for name in sorted(names)},
            "in_flight": {key: value for key, value in metrics.in_flight.items() if key in known},
        }
    )


def _judged_engines(
    observation: Observation, now: float, max_age_s: float, faults: list[str]
) -> dict[str, EngineMetrics]:
    engines = {}
    for replica in observation.with_phase(Phase.READY, Phase.DRAINING):
        metrics = replica.metrics
        if metrics is None:
            continue
        numbers = [value for _, value in metrics if isinstance(value, (int, float))]
        if not believable(*numbers) or metrics.kv_usage > 1.001:
            faults.append(f"{replica.id}: metrics are not believable")
        elif not now - max_age_s <= metrics.at <= now + max_age_s:
            faults.append(f"{replica.id}: metrics are not from the last {max_age_s:g} s")
        else:
            engines[replica.id] = metrics
    return engines


def _class_deltas(
    gateway: GatewayMetrics | None, before: GatewayMetrics | None, faults: list[str]
) -> dict[str, ClassCounters]:
    if gateway is None or before is None:
        return {}
    delta = {}
    for name, counters in gateway.classes.items():
        # A class that the earlier look did not have was counted from zero since.
        difference = counters.minus(before.classes[name]) if name in before.classes else counters
        if difference is None:
            faults.append(f"gateway: counters of class {name} were reset")
        delta[name] = difference or ClassCounters()
    return delta


def _advance(replica: Replica, metrics: EngineMetrics, before: Track | None) -> tuple[Track, list[StepSample]]:
    moved = before is None or metrics.heartbeat != before.heartbeat
    last_step = before.last_step if before else 0
    fresh = [s for s in metrics.samples if believable(*s) and s.number > last_step]
    track = Track(
        created_at=replica.created_at,
        restarts=replica.restarts,
        at=metrics.at,
        heartbeat=metrics.heartbeat,
        advanced_at=metrics.at if moved or before is None else before.advanced_at,
        last_step=max((s.number for s in fresh), default=last_step),
        busy_seconds=metrics.busy_seconds,
        prefix_queries=metrics.prefix_queries,
        prefix_hits=metrics.prefix_hits,
    )
    return track, fresh


def _last_word(replica: Replica, track: Track | None) -> float:
    """When the replica last showed life: a moving heartbeat, or having just become ready."""
    return max(track.advanced_at if track else 0.0, replica.ready_at or replica.created_at)


def _work(samples: Iterable[StepSample]) -> Work:
    seconds = sequences = context = tokens = 0.0
    for sample in samples:
        seconds += sample.seconds
        sequences += sample.seconds * sample.decode_sequences
        context += sample.seconds * sample.context_tokens
        tokens += sample.decode_sequences
    return Work(seconds=seconds, sequence_seconds=sequences, context_seconds=context, decode_tokens=tokens)


def _appended(slots: tuple[Slot, ...], new: Slot, span_s: float, now: float) -> tuple[Slot, ...]:
    if slots and slots[-1].end - slots[-1].start < span_s / _NUM_SLOTS:
        slots = (*slots[:-1], slots[-1].plus(new))
    else:
        slots = (*slots, new)
    # The newest stays even when it is older than the window, so that a slow turn still has a rate.
    return tuple(s for s in slots[:-1] if s.end > now - span_s)[-2 * _NUM_SLOTS :] + slots[-1:]


def _sum_work(slots: Iterable[Slot]) -> Work:
    total = Work()
    for slot in slots:
        total = total.plus(slot.work)
    return total


def _busiest(slots: Iterable[Slot]) -> Work:
    """The slot with most decoding sequences: limits follow a rise at once, and a fall only as the window moves."""
    works = [s.work for s in slots if s.work.seconds > 0]
    return max(works, key=lambda w: w.sequence_seconds / w.seconds, default=Work())


def _class_signals(objectives: Objectives, slots: Iterable[Slot], seen_s: float) -> ClassSignals:
    total = ClassCounters()
    for slot in slots:
        total = total.plus(slot.classes.get(objectives.name, ClassCounters()))
    return ClassSignals(
        ttft_s=total.ttft.quantile(objectives.ttft_share),
        tpot_s=total.tpot.quantile(objectives.tpot_share),
        num_ttft=total.ttft.total,
        num_tpot=total.tpot.total,
        attainment=min(1.0, total.slo_good / total.slo_total) if total.slo_total > 0 else None,
        requests=total.slo_total,
        arrivals_per_s=total.arrived / seen_s if seen_s > 0 else 0,
    )
