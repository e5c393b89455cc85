"""The real law in simulated time: the operator's own `decide`, fed with observations and obeyed action by action.

Imitates what lies between `decide` and the pods: scrapes, leases of limits, drains with their timeouts. Decides
nothing. Observations are built as values without any text; a value that is validated where it enters the operator is
made here by construction, because the simulation makes millions of them.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain

from capstan_api.limits import BatchLimits, LimitsState
from capstan_api.replicas import ReplicaEntry, ReplicaState
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.budgets import Budgets
from capstan_operator.decide import Decision, Memory, Observation, decide, render
from capstan_operator.decide.actions import DrainReplica, EnsureGateway, Route, SetLimits, StartReplica, StopReplica
from capstan_operator.decide.seen.observation import EngineMetrics, Gateway, GatewayMetrics, Phase, Replica
from capstan_operator.decide.seen.steps import packed
from capstan_sim.counters import Counters
from capstan_sim.engine import Engine, Step
from capstan_sim.fleet import Fleet, Pod, PodPhase
from capstan_sim.policy import Objective
from capstan_sim.simulation import Record

EPOCH_S = 1_800_000_000.0
"""The moment that a simulation's zero stands for."""
_PHASES = {
    PodPhase.PENDING: Phase.PENDING,
    PodPhase.STARTING: Phase.STARTING,
    PodPhase.READY: Phase.READY,
    PodPhase.DRAINING: Phase.DRAINING,
}


def objectives(deployment: InferenceDeployment) -> tuple[Objective, ...]:
    """The thresholds of the declared SLO classes, in their order."""
    return tuple(
        Objective(
            ttft_s=slo.ttft.threshold_milliseconds / 1000 if slo.ttft else float("inf"),
            tpot_s=slo.tpot.threshold_milliseconds / 1000 if slo.tpot else float("inf"),
            percent=float(slo.objective_percent),
        )
        for slo in deployment.spec.slos
    )


class ControlPlane:
    """One InferenceDeployment under the real `decide`, one turn every `interval_s`."""

    def __init__(
        self,
        deployment: InferenceDeployment,
        *,
        interval_s: float = 2.0,
        max_step_samples: int = 64,
        budgets: Budgets | None = None,
        on_turn: Callable[[Observation, Decision], None] | None = None,
    ) -> None:
        """`max_step_samples` of each engine and turn; `budgets` are shared with others; `on_turn` is shown what was
        decided, and from what.
        """
        self.interval_s = interval_s
        self.memory = Memory()
        self._deployment = deployment
        self._envelope = render.envelope(deployment)
        self._gateway_revision = render.gateway_revision(deployment)
        self._max_step_samples = max_step_samples
        self._budgets = budgets or Budgets(())
        self._on_turn = on_turn
        self._pods: dict[str, Pod] = {}
        self._lives: dict[str, _Life] = {}
        self._counters: Counters | None = None

    def begin(self, fleet: Fleet, record: Record) -> None:
        self._counters = Counters(fleet.book, objectives(self._deployment))
        revision = render.revision(self._deployment)
        for number in range(record.setting.initial_replicas):
            name = f"{self._deployment.metadata.name}-{revision}-{number}"
            self._launched(name, revision, fleet.launch(name, ready=True))
        record.wanted(record.setting.initial_replicas, fleet.now)

    def turn(self, fleet: Fleet, record: Record, *, blind: bool) -> None:
        now = EPOCH_S + fleet.now
        self._expire_leases(fleet)
        observation = self._observe(fleet, now, blind=blind)
        allowance = self._budgets.allowance(self._deployment, observation, self.memory, now)
        observation = observation.changed(allowance=allowance)
        decision = decide(self._deployment, observation, self.memory, now)
        self._budgets.decided(self._deployment, decision.demand)
        self.memory = decision.memory
        for action in decision.actions:
            match action:
                case EnsureGateway(revision=gateway_revision):
                    self._gateway_revision = gateway_revision
                case StartReplica(id=name, revision=revision):
                    self._launched(name, revision, fleet.launch(name))
                case SetLimits(id=name, limits=limits, lease_seconds=lease_s):
                    self._limit(fleet, name, limits, lease_s)
                case DrainReplica(id=name, timeout_seconds=timeout_s):
                    pod = self._pods[name]
                    fleet.drain(pod)
                    fleet.at(fleet.now + timeout_s, partial(_end, fleet, pod))
                case StopReplica(id=name):
                    fleet.stop(self._pods[name])
                case Route():
                    # The simulated router knows the pods itself.
                    pass
        record.wanted(self.memory.replicas.wanted or 0, fleet.now)
        if self.memory.limits.limits is not None:
            record.limited(self.memory.limits.limits, fleet.now)
        if self._on_turn is not None:
            self._on_turn(observation, decision)

    def _launched(self, name: str, revision: str, pod: Pod) -> None:
        self._pods[name] = pod
        self._lives[name] = _Life(revision, self._envelope.top)

    def _limit(self, fleet: Fleet, name: str, limits: BatchLimits, lease_s: int) -> None:
        life = self._lives[name]
        life.version += limits != life.limits
        life.limits, life.lease_until = limits, fleet.now + lease_s
        fleet.set_limits(limits, self._pods[name])

    def _expire_leases(self, fleet: Fleet) -> None:
        """Limits that nobody has renewed return to the resource's own."""
        for name, life in self._lives.items():
            if life.lease_until is not None and life.lease_until < fleet.now and name in self._pods:
                life.version += 1
                life.limits, life.lease_until = self._envelope.top, None
                fleet.set_limits(self._envelope.top, self._pods[name])

    def _observe(self, fleet: Fleet, now: float, *, blind: bool) -> Observation:
        for name in [name for name, pod in self._pods.items() if pod.phase is PodPhase.RETIRED]:
            del self._pods[name], self._lives[name]
        counters = self._counters
        assert counters is not None, "a controller begins before its first turn"
        counted = counters.read()
        replicas = tuple(self._replica(fleet, pod, counters, now, blind=blind) for _, pod in sorted(self._pods.items()))
        metrics = table = None
        if not blind:
            names = [slo.name for slo in self._deployment.spec.slos]
            classes = dict(zip(names, counted, strict=True))
            in_flight = {p.id: float(p.replica.outstanding) for p in fleet.pods if p.replica is not None}
            metrics = GatewayMetrics.made(at=now, classes=classes, held=float(len(fleet.gateway)), in_flight=in_flight)
            table = tuple(
                ReplicaEntry.model_construct(id=r.id, url=r.url or "", state=ReplicaState(r.phase.value))
                for r in replicas
                if r.phase in (Phase.READY, Phase.DRAINING)
            )
        gateway = Gateway.made(
            id="gateway-0", revision=self._gateway_revision, phase=Phase.READY, table=table, metrics=metrics
        )
        return Observation.made(
            at=now,
            replicas=replicas,
            gateways=(gateway,),
            endpoint="http://gateway",
            model_directory="/models/simulated",
        )

    def _replica(self, fleet: Fleet, pod: Pod, counters: Counters, now: float, *, blind: bool) -> Replica:
        life, engine = self._lives[pod.id], pod.replica
        metrics = limits = None
        if engine is not None and not blind:
            if engine is not life.engine:
                # A process that started again counts from zero, at the resource's limits.
                life = self._lives[pod.id] = _Life(life.revision, self._envelope.top, engine)
                counters.restarted(pod.number)
            served = counters.served(pod.number)
            num_steps = engine.num_steps(fleet.now)
            metrics = EngineMetrics.made(
                at=now,
                heartbeat=now,
                running=float(engine.num_running),
                waiting=float(engine.num_waiting),
                prefill_backlog=float(engine.prefill_backlog),
                kv_usage=engine.kv_tokens(fleet.now) / pod.model.kv_tokens,
                kv_blocks=float(pod.model.kv_tokens // self._deployment.spec.engine.kv_cache.block_size),
                steps=float(num_steps),
                busy_seconds=engine.busy_s(fleet.now),
                prefix_queries=float(engine.prefix_queries),
                prefix_hits=float(engine.prefix_hits),
                slo_total=float(served.total),
                slo_good=float(served.good),
                ttft_good=float(served.ttft_good),
                tpot_good=float(served.tpot_good),
                samples=self._samples(fleet, pod, life),
            )
            limits = LimitsState.model_construct(
                limits=life.limits,
                defaults=self._envelope.top,
                envelope=self._envelope,
                version=life.version,
                lease_remaining_seconds=None if life.lease_until is None else life.lease_until - fleet.now,
            )
        return Replica.made(
            id=pod.id,
            revision=life.revision,
            phase=_PHASES[pod.phase],
            created_at=EPOCH_S + pod.created_at,
            ready_at=None if engine is None else EPOCH_S + pod.ready_at,
            restarts=pod.restarts,
            url=f"http://{pod.id}",
            metrics=metrics,
            limits=limits,
        )

    def _samples(self, fleet: Fleet, pod: Pod, life: "_Life") -> bytes:
        """The newest steps that no look has seen."""
        engine = pod.replica
        assert engine is not None, "a pod without a process has no steps"
        runs = list(engine.runs)
        engine.runs.clear()
        present = engine.run_so_far(fleet.now)
        if present is not None:
            runs.append(present)
        pieces: list[list[Step]] = []
        num_left = self._max_step_samples
        for run in reversed(runs):
            unseen = run.steps(max(life.last_step + 1, run.first + run.num_steps - num_left), EPOCH_S)
            if not unseen:
                break
            pieces.append(unseen)
            num_left -= len(unseen)
        if pieces:
            life.last_step = pieces[0][-1][0]
        return packed(chain.from_iterable(reversed(pieces)))


class _Life:
    """What the admin API of one engine process knows beside its counters."""

    def __init__(self, revision: str, limits: BatchLimits, engine: Engine | None = None) -> None:
        self.revision = revision
        self.limits = limits
        self.engine = engine
        self.version = 0
        self.lease_until: float | None = None
        self.last_step = 0


def _end(fleet: Fleet, pod: Pod) -> None:
    """A drain's time is over."""
    if pod.phase is PodPhase.DRAINING:
        fleet.stop(pod)
