"""A plant in simulated time for the law to drive: engines with a linear step time, a queue each, a cold start.

Only the seconds are imitated. Steps follow the engine's own rule: decodes first, what is left of the token budget to
prefill in order of arrival, at most `max_sequences` at a time. Nothing here is random but the arrivals, and these have
a seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from capstan_api.limits import BatchLimits, LimitsState
from capstan_api.metrics import Gateway as Series
from capstan_api.replicas import ReplicaEntry
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import Decision, Memory, Observation, decide, render
from capstan_operator.decide.actions import DrainReplica, EnsureGateway, Route, SetLimits, StartReplica, StopReplica
from capstan_operator.decide.seen.counters import ClassCounters, Histogram
from capstan_operator.decide.seen.observation import EngineMetrics, Gateway, GatewayMetrics, Phase, Replica
from capstan_operator.decide.seen.steps import StepSample, packed

SLO_CLASS = "interactive"


@dataclass
class Request:
    arrival: float
    prompt: int
    output: int
    computed: int = 0
    produced: int = 0
    first: float = 0.0


@dataclass
class SimulatedEngine:
    id: str
    revision: str
    created_at: float
    ready_at: float
    limits: BatchLimits
    version: int = 0
    lease_until: float | None = None
    draining: bool = False
    time: float = 0.0
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    samples: list[StepSample] = field(default_factory=list)
    steps: int = 0
    busy: float = 0.0
    ended: list[tuple[bool, bool]] = field(default_factory=list)
    """Of each answered request, whether its TTFT and its TPOT were in time."""

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)


class Counts:
    def __init__(self, series: object) -> None:
        self.bounds = series.bounds()  # type: ignore[attr-defined]
        self.counts = [0.0] * (len(self.bounds) + 1)

    def observe(self, seconds: float) -> None:
        for i, bound in enumerate(self.bounds):
            self.counts[i] += seconds <= bound
        self.counts[-1] += 1

    def histogram(self) -> Histogram:
        return Histogram(bounds=self.bounds, counts=tuple(self.counts))


class Plant:
    """Runs one deployment under the law, `tick_s` simulated seconds a turn."""

    def __init__(
        self,
        deployment: InferenceDeployment,
        rate: Callable[[float], float],
        *,
        costs: tuple[float, ...],
        cold_start_s: float = 6.0,
        prompt: int = 200,
        output: int = 50,
        tick_s: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.deployment = deployment
        self.start = self.now = 1_800_000_000.0
        self.decisions: list[Decision] = []
        self.latencies: list[tuple[float, float, float]] = []
        """Arrival, TTFT and TPOT of finished requests."""
        self.blind_from = self.blind_until = float("inf")
        self.tells_steps = True
        self.memory = Memory()
        self._rate, self._costs, self._cold_start_s, self._tick_s = rate, costs, cold_start_s, tick_s
        self._lengths = (prompt, output)
        self._random = Random(seed)
        self._engines: dict[str, SimulatedEngine] = {}
        self._table: tuple[ReplicaEntry, ...] = ()
        self._gateway_revision: str | None = None
        self._held: list[Request] = []
        self._arrived = self._completed = self._good = 0
        self._ttft, self._tpot = Counts(Series.TTFT), Counts(Series.TPOT)

    @property
    def replicas(self) -> list[int]:
        return [d.memory.replicas.wanted or 0 for d in self.decisions]

    @property
    def budgets(self) -> list[int]:
        return [d.memory.limits.limits.max_batched_tokens for d in self.decisions if d.memory.limits.limits]

    def run(self, seconds: float) -> "Plant":
        for _ in range(round(seconds / self._tick_s)):
            decision = decide(self.deployment, self.observe(), self.memory, self.now)
            self.memory = decision.memory
            self.decisions.append(decision)
            self._apply(decision)
            self._advance()
        return self

    def observe(self) -> Observation:
        blind = self.blind_from <= self.now < self.blind_until
        return Observation(
            at=self.now,
            replicas=tuple(self._replica(e, blind) for _, e in sorted(self._engines.items())),
            gateways=self._gateways(blind),
            model_directory="/models/tiny",
        )

    def _replica(self, engine: SimulatedEngine, blind: bool) -> Replica:
        phase = Phase.DRAINING if engine.draining else Phase.READY if engine.ready_at <= self.now else Phase.STARTING
        metrics = limits = None
        if phase is not Phase.STARTING and not blind:
            samples, engine.samples = tuple(engine.samples), []
            metrics = EngineMetrics(
                at=self.now,
                heartbeat=self.now,
                running=len(engine.running),
                waiting=len(engine.waiting),
                kv_blocks=4096,
                steps=engine.steps,
                busy_seconds=engine.busy,
                slo_total=len(engine.ended),
                slo_good=sum(ttft and tpot for ttft, tpot in engine.ended),
                ttft_good=sum(ttft for ttft, _ in engine.ended),
                tpot_good=sum(tpot for _, tpot in engine.ended),
                samples=packed(samples if self.tells_steps else ()),
            )
            top = render.envelope(self.deployment).top
            limits = LimitsState(
                limits=engine.limits,
                defaults=top,
                envelope=render.envelope(self.deployment),
                version=engine.version,
                lease_remaining_seconds=None if engine.lease_until is None else engine.lease_until - self.now,
            )
        return Replica(
            id=engine.id,
            revision=engine.revision,
            phase=phase,
            created_at=engine.created_at,
            ready_at=engine.ready_at if phase is not Phase.STARTING else None,
            url=f"http://{engine.id}",
            metrics=metrics,
            limits=limits,
        )

    def _gateways(self, blind: bool) -> tuple[Gateway, ...]:
        if self._gateway_revision is None:
            return ()
        counters = ClassCounters(
            arrived=self._arrived,
            completed=self._completed,
            slo_total=self._completed,
            slo_good=self._good,
            prompt_tokens=self._completed * self._lengths[0],
            output_tokens=self._completed * self._lengths[1],
            ttft=self._ttft.histogram(),
            tpot=self._tpot.histogram(),
        )
        in_flight = {e.id: float(e.load) for e in self._engines.values()}
        metrics = GatewayMetrics(at=self.now, classes={SLO_CLASS: counters}, held=len(self._held), in_flight=in_flight)
        gateway = Gateway(
            id="gateway",
            revision=self._gateway_revision,
            phase=Phase.READY,
            table=None if blind else self._table,
            metrics=None if blind else metrics,
        )
        return (gateway,)

    def _apply(self, decision: Decision) -> None:
        for action in decision.actions:
            match action:
                case EnsureGateway(revision=revision):
                    self._gateway_revision = revision
                case StartReplica(id=name, revision=revision, args=args):
                    ready_at = self.now + self._cold_start_s
                    self._engines[name] = SimulatedEngine(name, revision, self.now, ready_at, args.envelope.top)
                case Route(table=table):
                    self._table = table
                case SetLimits(id=name, limits=limits, lease_seconds=lease_s, version=version):
                    engine = self._engines[name]
                    assert version == engine.version
                    engine.limits, engine.lease_until = limits, self.now + lease_s
                    engine.version += 1
                case DrainReplica(id=name):
                    self._engines[name].draining = True
                case StopReplica(id=name):
                    assert not self._engines.pop(name).load

    def _advance(self) -> None:
        """One tick: arrivals, routing, steps, and the end of those that have drained."""
        end = self.now + self._tick_s
        moment = self.now
        while (rate := self._rate(moment - self.start)) > 0:
            moment += self._random.expovariate(rate)
            if moment >= end:
                break
            self._arrived += 1
            self._held.append(Request(moment, *self._lengths))
        ready = [self._engines[row.id] for row in self._table if row.state == "Ready" and row.id in self._engines]
        while ready and self._held:
            min(ready, key=lambda e: e.load).waiting.append(self._held.pop(0))
        for engine in list(self._engines.values()):
            if engine.ready_at <= self.now:
                self._run_engine(engine, end)
            if engine.draining and not engine.load:
                del self._engines[engine.id]
        self.now = end

    def _run_engine(self, engine: SimulatedEngine, end: float) -> None:
        engine.time = max(engine.time, self.now)
        if engine.lease_until is not None and engine.lease_until < self.now:
            engine.limits, engine.lease_until = render.envelope(self.deployment).top, None
        while engine.time < end and engine.load:
            arrived = [r for r in engine.waiting if r.arrival <= engine.time]
            if not arrived and not engine.running:
                engine.time = min(end, min(r.arrival for r in engine.waiting))
                continue
            self._step(engine, arrived)

    def _step(self, engine: SimulatedEngine, arrived: list[Request]) -> None:
        decoding = [r for r in engine.running if r.produced]
        budget = engine.limits.max_batched_tokens - len(decoding)
        for request in arrived:
            if len(engine.running) >= engine.limits.max_sequences:
                break
            engine.waiting.remove(request)
            engine.running.append(request)
        chunks = []
        for request in engine.running:
            if not request.produced and budget > 0:
                chunk = min(budget, request.prompt - request.computed)
                chunks.append((request, chunk))
                budget -= chunk
        prefill, context = sum(c for _, c in chunks), sum(r.prompt + r.produced for r in decoding)
        pairs = sum(c * (r.computed + c / 2) for r, c in chunks)
        features = (1, prefill, len(decoding), context, pairs)
        seconds = sum(c * x for c, x in zip(self._costs, features, strict=True))
        engine.time += seconds
        engine.steps += 1
        engine.busy += seconds
        engine.samples.append(StepSample(engine.steps, engine.time, seconds, prefill, len(decoding), context, pairs))
        for request, chunk in chunks:
            request.computed += chunk
            if request.computed >= request.prompt:
                request.produced, request.first = 1, engine.time
                self._ttft.observe(engine.time - request.arrival)
        for request in decoding:
            request.produced += 1
        for request in [r for r in engine.running if r.produced >= r.output]:
            engine.running.remove(request)
            engine.ended.append(self._finish(request, engine.time))

    def _finish(self, request: Request, now: float) -> tuple[bool, bool]:
        ttft, tpot = request.first - request.arrival, (now - request.first) / max(1, request.output - 1)
        slo = self.deployment.spec.slos[0]
        good_ttft = slo.ttft is None or ttft * 1000 <= slo.ttft.threshold_milliseconds
        good_tpot = slo.tpot is None or tpot * 1000 <= slo.tpot.threshold_milliseconds
        self._completed += 1
        self._good += good_ttft and good_tpot
        self._tpot.observe(tpot)
        self.latencies.append((request.arrival - self.start, ttft, tpot))
        return good_ttft, good_tpot
