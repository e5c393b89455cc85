"""A `Frame`: what a person wants to know of one turn of the operator. View, plain lines, report and plot read frames.

Knows nothing of how anything is drawn. Latencies are milliseconds at the class's own percentile, as the operator
measured them at the gateway over its window.
"""

from dataclasses import dataclass

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.spec import Slo
from capstan_api.status import DecisionStatus, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide.decision import Decision
from capstan_operator.decide.seen.observation import Observation, Replica


@dataclass(frozen=True)
class ClassFrame:
    """One SLO class. None: not measured, or no threshold declared."""

    name: str
    percentile: int
    ttft_ms: int | None
    ttft_threshold_ms: int | None
    tpot_ms: int | None
    tpot_threshold_ms: int | None
    attainment_percent: float | None
    requests: int


@dataclass(frozen=True)
class ReplicaFrame:
    """One engine. `kv_usage` is a share of 1."""

    id: str
    phase: str
    age_s: float
    restarts: int = 0
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Frame:
    """One turn. `at` is epoch seconds."""

    at: float
    name: str
    model: str
    classes: tuple[ClassFrame, ...] = ()
    replicas: tuple[ReplicaFrame, ...] = ()
    replicas_ready: int = 0
    replicas_wanted: int = 0
    limits: BatchLimits | None = None
    envelope: Envelope | None = None
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    held: int = 0
    decisions: tuple[DecisionStatus, ...] = ()
    """The last ones that did something, newest first."""
    now: DecisionStatus | None = None
    """What this turn decided, holds included."""
    endpoint: str | None = None
    error: str | None = None

    @property
    def waiting(self) -> int:
        return self.held + sum(r.waiting or 0 for r in self.replicas)


def frame(
    deployment: InferenceDeployment,
    at: float,
    observation: Observation | None,
    decision: Decision | None,
    error: str | None = None,
) -> Frame:
    """The frame of a turn. A turn that failed has no decision, perhaps no observation, and an `error`."""
    status = decision.status if decision else InferenceDeploymentStatus()
    signals = decision.signals if decision else None
    replicas = observation.replicas if observation else ()
    envelopes = [replica.limits.envelope for replica in replicas if replica.limits]
    return Frame(
        at=at,
        name=deployment.metadata.name,
        model=deployment.served_model_names[0],
        classes=tuple(_class(slo, status) for slo in deployment.spec.slos),
        replicas=tuple(_replica(replica, at) for replica in replicas),
        replicas_ready=status.ready_replicas,
        replicas_wanted=status.desired_replicas,
        limits=_limits(status),
        envelope=envelopes[0] if envelopes else None,
        requests_per_s=signals.arrivals_per_s if signals else None,
        output_tokens_per_s=signals.output_tokens_per_s if signals else None,
        held=int(signals.held) if signals else 0,
        decisions=tuple(status.decision_history),
        now=decision.said if decision else None,
        endpoint=observation.endpoint if observation else None,
        error=error,
    )


def _class(slo: Slo, status: InferenceDeploymentStatus) -> ClassFrame:
    measured = next((s for s in status.slos if s.name == slo.name), None)
    attained = measured.attainment_percent if measured else None
    objective = slo.ttft or slo.tpot
    return ClassFrame(
        name=slo.name,
        percentile=objective.percentile if objective else 95,
        ttft_ms=measured.ttft_milliseconds if measured else None,
        ttft_threshold_ms=slo.ttft.threshold_milliseconds if slo.ttft else None,
        tpot_ms=measured.tpot_milliseconds if measured else None,
        tpot_threshold_ms=slo.tpot.threshold_milliseconds if slo.tpot else None,
        attainment_percent=None if attained is None else float(attained),
        requests=measured.requests if measured else 0,
    )


def _limits(status: InferenceDeploymentStatus) -> BatchLimits | None:
    limits = status.effective_batch_limits
    if limits is None:
        return None
    return BatchLimits(max_sequences=limits.max_sequences, max_batched_tokens=limits.max_batched_tokens)


def _replica(replica: Replica, now: float) -> ReplicaFrame:
    metrics = replica.metrics
    return ReplicaFrame(
        id=replica.id,
        phase=str(replica.phase),
        age_s=max(now - replica.created_at, 0.0),
        restarts=replica.restarts,
        running=int(metrics.running) if metrics else None,
        waiting=int(metrics.waiting) if metrics else None,
        kv_usage=metrics.kv_usage if metrics else None,
        message=replica.message,
    )
