"""From one look at the world to signals: counter differences over a sliding window, of what is believed.

Decides nothing, and trusts nothing that `judgement` has not passed.

The surprising idea: idle and blind are told apart by the heartbeat. An engine without requests still counts turns of
its loop; one whose heartbeat stands still has told us nothing, however fresh the scrape looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from capstan_operator.decide.curve import Array
from capstan_operator.decide.seen.counters import NOTHING, ClassCounters
from capstan_operator.decide.seen.engines import Engines
from capstan_operator.decide.seen.judgement import Judge
from capstan_operator.decide.seen.observation import Gateway, GatewayMetrics, Observation, Phase, Replica
from capstan_operator.decide.seen.signals import ClassSignals, Lengths, Signals
from capstan_operator.decide.seen.steps import chosen
from capstan_operator.decide.seen.window import Progress, Slot, Window, appended
from capstan_operator.decide.values import Value

# Steps that are looked at in one turn: of all engines together, and of each one when there are many.
_MOST_SAMPLES, _FEWEST_SAMPLES = 128, 2


class Objectives(Value):
    """What is read for one SLO class: which quantiles."""

    name: str
    ttft_share: float = 0.95
    tpot_share: float = 0.95


class Reading(NamedTuple):
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
    tracks, passed, seen_steps = window.tracks.after(observation.replicas, engines)
    most = max(_FEWEST_SAMPLES, _MOST_SAMPLES // max(1, len(engines)))
    samples, times = chosen(engines.steps, engines.num_steps, seen_steps, most)
    progress = Progress.of(samples, times, passed)
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
        gateways={key: last for key, last in (window.gateways | gateways).items() if key in existing},
        met={gateway.id: window.met.get(gateway.id, now) for gateway in observation.ready_gateways},
        looked_at=looked_at,
        slots=slots,
        tracks=tracks,
    )
    reporting, doors = _reporting(observation, window), _reporting_gateways(observation, window)
    blind = _blind(observation, window, reporting, doors, now, max_age_s)
    whole = set(engines.ids).issuperset([r.id for r in reporting]) and all(g.id in gateways for g in doors)
    complete = bool(gateways) and not blind and whole
    signals = _signals(observation, window, gateways, engines, delta, objectives, judge, blind, complete=complete)
    return Reading(
        signals=signals, window=window, lengths=lengths, delta=delta, samples=samples, seconds=max(0.0, seconds)
    )


def _reporting(observation: Observation, window: Window) -> tuple[Replica, ...]:
    """Replicas that ought to report: the ready ones, and those that did in this life and then fell silent.

    A world calls the latter starting again, because they take no requests; they may still work on those they have.
    """
    if not observation.with_phase(Phase.STARTING):
        return observation.with_phase(Phase.READY)
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
    alive = window.tracks.alive(now, max_age_s)
    blind = []
    for replica in [r for r in reporting if r.id not in alive]:
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
    engines: Engines,
    delta: Mapping[str, ClassCounters],
    objectives: Iterable[Objectives],
    judge: Judge,
    blind: tuple[str, ...],
    *,
    complete: bool,
) -> Signals:
    in_flight: dict[str, float] = {}
    for metrics in gateways.values():
        both = in_flight.keys() & metrics.in_flight.keys()
        in_flight |= metrics.in_flight | {key: in_flight[key] + metrics.in_flight[key] for key in both}
    held = sum((metrics.held for metrics in gateways.values()), 0.0)
    served, usage, blocks = engines.sums, engines.column("kv_usage"), engines.column("kv_blocks")
    waiting, running, ready = served["waiting"], served["running"], Phase.READY
    arrived = any(counted.arrived > 0 for counted in delta.values())
    total, seen_s = window.total, window.seen_s
    done, peak = total.progress, window.busiest
    classes = {o.name: _class_signals(o, total, seen_s) for o in objectives}
    return Signals.made(
        window_s=seen_s,
        gateway_seen=bool(gateways),
        complete=complete,
        blind=blind,
        faults=(*observation.faults, *judge.faults),
        rejected=tuple(judge.faults),
        classes=classes,
        arrivals_per_s=sum(c.arrivals_per_s for c in classes.values()) if seen_s > 0 else None,
        output_tokens_per_s=done.decode_tokens / seen_s if seen_s > 0 else None,
        active=not complete or arrived or waiting + running + held + sum(in_flight.values()) > 0,
        waiting=waiting,
        running=running,
        held=held,
        prefill_backlog=served["prefill_backlog"],
        in_flight=sum(in_flight.values(), 0.0),
        kv_usage=max(usage.tolist(), default=0.0),
        num_serving=sum([r.phase is ready for r in engines.replicas]),
        kv_held=sum((usage * blocks).tolist()),
        kv_blocks=min(blocks.tolist(), default=0.0),
        utilisation=done.utilisation,
        decode_sequences=peak.sequences,
        context_tokens=peak.context,
        inter_token_s=done.inter_token_s,
        load=_load(observation, engines, in_flight),
        cache_value=window.tracks.cached,
    )


def _load(observation: Observation, engines: Engines, in_flight: Mapping[str, float]) -> dict[str, float]:
    """Requests on each replica, by the gateways' count or its own, whichever knows of more."""
    # Nothing is in flight to others: `judgement` leaves out what a gateway says of them.
    load = dict.fromkeys(observation.ids, 0.0) | dict(in_flight)
    own = (engines.column("running") + engines.column("waiting")).tolist()
    for key, requests in zip(engines.ids, own, strict=True):
        if requests > load[key]:
            load[key] = requests
    return load


def _class_signals(objectives: Objectives, total: Slot, seen_s: float) -> ClassSignals:
    counted = total.classes.get(objectives.name, NOTHING)
    return ClassSignals.made(
        ttft_s=counted.ttft.quantile(objectives.ttft_share),
        tpot_s=counted.tpot.quantile(objectives.tpot_share),
        num_ttft=counted.ttft.total,
        num_tpot=counted.tpot.total,
        attainment=min(1.0, counted.slo_good / counted.slo_total) if counted.slo_total > 0 else None,
        requests=counted.slo_total,
        arrivals_per_s=counted.arrived / seen_s if seen_s > 0 else 0.0,
    )
