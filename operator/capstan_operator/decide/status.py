"""`InferenceDeployment.status` from one decision: counts, results by class, books and conditions.

Knows no writer: whether a status is new enough to be written is the shell's question. A condition's transition time
changes only with its status, so that a world at rest gives the same status again.
"""

from collections.abc import Iterable
from typing import NamedTuple

from capstan_api import names
from capstan_api.limits import BatchLimits
from capstan_api.spec import Mode, Slo
from capstan_api.status import (
    Condition,
    ConditionStatus,
    ConditionType,
    DecisionStatus,
    EffectiveBatchLimits,
    InferenceDeploymentStatus,
    SloStatus,
    StartupStatus,
    UsageStatus,
    summarize,
)
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide.ledger import Ledger, Transition
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.observation import Observation, Phase, Replica
from capstan_operator.decide.rollout import Plan
from capstan_operator.decide.signals import Signals
from capstan_operator.decide.times import rfc3339

_CRASH_LOOP_RESTARTS = 3
_LONGEST_MESSAGE = 1024
_TRUE, _FALSE, _UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


class Finding(NamedTuple):
    """A condition without its times."""

    status: ConditionStatus
    reason: str
    message: str


def report(
    deployment: InferenceDeployment,
    observation: Observation,
    memory: Memory,
    signals: Signals,
    plan: Plan,
    *,
    said: DecisionStatus,
    recommendation: DecisionStatus | None,
    now: float,
) -> tuple[Memory, InferenceDeploymentStatus]:
    """The status, and the memory with the conditions' transitions noted."""
    spec, ledger = deployment.spec, memory.ledger
    phases = [r.phase for r in observation.replicas]
    ready, wanted = phases.count(Phase.READY), memory.replicas.wanted or 0
    results = [_slo_status(slo, signals, ledger) for slo in spec.slos]
    limits = memory.limits.limits
    findings = _findings(deployment, observation, memory, signals, plan, results, said)
    transitions = {
        kind: _transition(ledger.transitions.get(kind), finding.status, now) for kind, finding in findings.items()
    }
    memory = memory.model_copy(update={"ledger": ledger.model_copy(update={"transitions": transitions})})
    status = InferenceDeploymentStatus(
        observed_generation=deployment.metadata.generation,
        replicas=len(phases),
        ready_replicas=ready,
        starting_replicas=phases.count(Phase.STARTING) + phases.count(Phase.FAILED),
        draining_replicas=phases.count(Phase.DRAINING),
        desired_replicas=wanted,
        selector=f"{names.LABEL_DEPLOYMENT}={deployment.metadata.name}",
        revision=memory.revision,
        effective_batch_limits=_effective(limits, observation, memory),
        slos=results,
        startup=_startup(ledger),
        usage=UsageStatus(
            replica_hours=f"{ledger.replica_hours:.4f}",
            cost=f"{ledger.replica_hours * float(spec.variant.cost_per_hour):.4f}",
            since=rfc3339(ledger.since) if ledger.since is not None else None,
        ),
        last_decision=ledger.last,
        decision_history=list(ledger.decisions),
        recommendation=recommendation,
        endpoint=observation.gateway.url if observation.gateway else None,
        conditions=[
            Condition(
                type=kind,
                status=finding.status,
                reason=finding.reason,
                message=finding.message[:_LONGEST_MESSAGE],
                last_transition_time=rfc3339(transitions[kind].since),
                observed_generation=deployment.metadata.generation,
            )
            for kind, finding in findings.items()
        ],
        summary=summarize(spec.slos, results, limits, ready, wanted),
        memory=memory.durable(),
    )
    return memory, status


def _findings(
    deployment: InferenceDeployment,
    observation: Observation,
    memory: Memory,
    signals: Signals,
    plan: Plan,
    results: Iterable[SloStatus],
    said: DecisionStatus,
) -> dict[ConditionType, Finding]:
    available = _available(observation, memory)
    fresh = _fresh(observation, signals)
    ready = available
    if available.status is _TRUE and fresh.status is _FALSE:
        ready = fresh
    return {
        ConditionType.READY: ready,
        ConditionType.AVAILABLE: available,
        ConditionType.PROGRESSING: _progressing(observation, memory, plan),
        ConditionType.SLO_MET: _slo_met(deployment.spec.slos, results),
        ConditionType.SCALING_ACTIVE: _scaling_active(deployment.spec.scaling.mode, said),
        ConditionType.METRICS_FRESH: fresh,
        ConditionType.BATCH_LIMITS_APPLIED: _limits_applied(observation, memory),
    }


def _available(observation: Observation, memory: Memory) -> Finding:
    gateway, ready = observation.gateway, observation.with_phase(Phase.READY)
    if gateway is None or gateway.phase is not Phase.READY:
        why = gateway.message if gateway and gateway.message else "it is starting"
        return Finding(_FALSE, "GatewayNotReady", f"the gateway does not answer: {why}")
    if ready:
        return Finding(_TRUE, "ReplicasReady", f"{len(ready)} of {memory.replicas.wanted} replicas are ready")
    if memory.replicas.wanted == 0:
        return Finding(_TRUE, "ScaledToZero", "the first request starts a replica and is held until it is ready")
    if observation.model_directory is None:
        return Finding(_FALSE, "ModelNotFound", "; ".join(observation.faults) or "the model was not found")
    failed = [r for r in observation.replicas if r.phase is Phase.FAILED]
    if failed:
        return Finding(_FALSE, "ReplicasFailing", _failure(failed[0]))
    return Finding(_FALSE, "ReplicasStarting", "no replica is ready yet")


def _progressing(observation: Observation, memory: Memory, plan: Plan) -> Finding:
    looping = [r for r in observation.replicas if r.phase is Phase.FAILED and r.restarts >= _CRASH_LOOP_RESTARTS]
    if looping:
        return Finding(_FALSE, "CrashLoop", _failure(looping[0]))
    if any(r.revision != memory.revision and r.phase is not Phase.DRAINING for r in observation.replicas):
        return Finding(_TRUE, "RollingOut", f"replicas of revision {memory.revision} take over")
    starting = len(observation.with_phase(Phase.STARTING, Phase.FAILED)) + len(plan.start)
    leaving = len(observation.with_phase(Phase.DRAINING)) + len(plan.drain) + len(plan.stop)
    if starting or leaving:
        return Finding(_TRUE, "Scaling", f"{starting} replicas are starting, {leaving} are leaving")
    return Finding(_FALSE, "Settled", "all replicas are as wanted")


def _fresh(observation: Observation, signals: Signals) -> Finding:
    if signals.blind:
        return Finding(_FALSE, "Blind", f"no word from {signals.missing}: the last decision holds")
    if signals.faults:
        return Finding(_FALSE, "Rejected", "; ".join(signals.faults))
    if observation.gateway is None or not signals.gateway_seen:
        return Finding(_UNKNOWN, "NotYetMeasured", "the gateway has not been read yet")
    return Finding(_TRUE, "Fresh", "gateway and replicas report")


def _slo_met(slos: Iterable[Slo], results: Iterable[SloStatus]) -> Finding:
    objectives = {slo.name: float(slo.objective_percent) for slo in slos}
    measured = {r.name: float(r.attainment_percent) for r in results if r.attainment_percent is not None}
    if not measured:
        return Finding(_UNKNOWN, "NoRequests", "no request was counted in the window")
    missed = [
        f"{name}: {percent:g} % of requests are good, {objectives[name]:g} % are asked for"
        for name, percent in measured.items()
        if percent < objectives[name]
    ]
    if missed:
        return Finding(_FALSE, "ObjectiveMissed", "; ".join(missed))
    return Finding(_TRUE, "ObjectivesMet", "; ".join(f"{n}: {p:g} % of requests are good" for n, p in measured.items()))


def _scaling_active(mode: Mode, said: DecisionStatus) -> Finding:
    if mode is Mode.AUTO:
        return Finding(_TRUE, said.reason, said.message)
    what = "replicas are set by hand" if mode is Mode.MANUAL else "decisions are only recommended"
    return Finding(_FALSE, f"Mode{mode.value}", what)


def _limits_applied(observation: Observation, memory: Memory) -> Finding:
    limits, ready = memory.limits.limits, observation.with_phase(Phase.READY)
    if limits is None or not ready:
        return Finding(_UNKNOWN, "NoReplicaReady", "no engine is there to have limits")
    others = [r.id for r in ready if r.limits is None or r.limits.limits != r.limits.envelope.clamp(limits)]
    if others:
        return Finding(_FALSE, "Pending", f"not yet in force on {', '.join(others[:8])}")
    return Finding(_TRUE, "InForce", f"{limits.max_sequences} sequences, {limits.max_batched_tokens} tokens a step")


def _failure(replica: Replica) -> str:
    return f"{replica.id} has failed {replica.restarts + 1} times: {replica.message or 'no reason was given'}"


def _transition(before: Transition | None, status: ConditionStatus, now: float) -> Transition:
    return before if before is not None and before.status is status else Transition(status=status, since=now)


def _slo_status(slo: Slo, signals: Signals, ledger: Ledger) -> SloStatus:
    seen, left = signals.classes[slo.name], ledger.budget_left(slo)
    return SloStatus(
        name=slo.name,
        ttft_milliseconds=round(seen.ttft_s * 1000) if seen.ttft_s is not None else None,
        tpot_milliseconds=round(seen.tpot_s * 1000) if seen.tpot_s is not None else None,
        attainment_percent=f"{seen.attainment * 100:.2f}" if seen.attainment is not None else None,
        error_budget_remaining_percent=f"{left * 100:.2f}" if left is not None else None,
        requests=round(seen.requests),
    )


def _effective(limits: BatchLimits | None, observation: Observation, memory: Memory) -> EffectiveBatchLimits | None:
    if limits is None:
        return None
    ready = observation.with_phase(Phase.READY)
    changed_at = memory.limits.changed_at
    return EffectiveBatchLimits(
        max_sequences=limits.max_sequences,
        max_batched_tokens=limits.max_batched_tokens,
        applied_replicas=sum(1 for r in ready if r.limits is not None and r.limits.limits == limits),
        last_change_time=rfc3339(changed_at) if changed_at is not None else None,
        reason=memory.limits.message or memory.limits.reason,
    )


def _startup(ledger: Ledger) -> StartupStatus:
    median, slow = ledger.startup_s(0.5), ledger.startup_s(0.9)
    return StartupStatus(
        p50_seconds=round(median) if median is not None else None,
        p90_seconds=round(slow) if slow is not None else None,
        samples=len(ledger.startups_s),
    )
