"""`InferenceDeployment.status` from one decision: counts, results by class, books and conditions.

Knows no writer: whether a status is new enough to be written is the shell's question. A condition's transition time
changes only with its status, so that a world at rest gives the same status again.
"""

from collections.abc import Sequence
from functools import lru_cache

from capstan_api import names
from capstan_api.scaling import Mode
from capstan_api.spec import Slo
from capstan_api.startup import StartupPhase
from capstan_api.status import (
    Condition,
    ConditionType,
    DecisionStatus,
    EffectiveBatchLimits,
    InferenceDeploymentStatus,
    LimitsOnTrial,
    SloStatus,
    StartupPhaseStatus,
    StartupStatus,
    UsageStatus,
    summarize,
)
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide.ledger import Ledger, Transition, quantile
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.limits.obedience import different, limits_told
from capstan_operator.decide.limits.trials import Trial
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.rollout import Plan
from capstan_operator.decide.scaling.demand import Demand
from capstan_operator.decide.seen.observation import Observation, Phase, Replica
from capstan_operator.decide.seen.signals import Signals
from capstan_operator.decide.times import rfc3339
from capstan_operator.decide.told.conditions import Finding, Scene, findings

_LONGEST_MESSAGE = 1024
# Conditions that speak of the resource as it was written last, also when an older one is in force.
_OF_THE_NEWEST = (ConditionType.CONFIGURATION_VALID, ConditionType.STALLED)


def report(
    deployment: InferenceDeployment,
    observation: Observation,
    memory: Memory,
    signals: Signals,
    plan: Plan,
    *,
    said: DecisionStatus,
    overdue: tuple[Replica, ...],
    demand: Demand | None,
    now: float,
) -> tuple[Memory, InferenceDeploymentStatus]:
    """The status, and the memory with the conditions' transitions noted."""
    spec, ledger = deployment.spec, memory.ledger
    ready, wanted = len(observation.with_phase(Phase.READY)), memory.replicas.wanted or 0
    results = [_slo_status(slo, signals, ledger) for slo in spec.slos]
    strays = _strays(observation, memory.limits)
    effective = _effective(observation, memory, strays, spec.scaling.mode)
    scene = Scene(deployment, observation, memory, signals, plan, tuple(results), said, overdue, demand, strays, now)
    found = findings(scene)
    known = ledger.transitions
    transitions = {
        kind: before
        if (before := known.get(kind)) is not None and before.status is finding.status
        else Transition(status=finding.status, since=now)
        for kind, finding in found.items()
    }
    if transitions != known:
        memory = memory.changed(ledger=ledger.changed(transitions=transitions))
    generation, fault = deployment.metadata.generation, observation.configuration_fault
    newest = max(generation, fault.generation) if fault is not None else generation
    status = InferenceDeploymentStatus.made(
        observed_generation=newest,
        replicas=len(observation.replicas),
        ready_replicas=ready,
        pending_replicas=len(observation.with_phase(Phase.PENDING)),
        starting_replicas=len(observation.with_phase(Phase.STARTING, Phase.FAILED)),
        draining_replicas=len(observation.with_phase(Phase.DRAINING)),
        desired_replicas=wanted,
        selector=f"{names.LABEL_DEPLOYMENT}={deployment.metadata.name},{names.LABEL_COMPONENT}=engine",
        revision=memory.revision,
        stable_revision=memory.rollout.stable.revision if memory.rollout.stable else "",
        effective_batch_limits=effective,
        slos=results,
        startup=_startup(ledger.startups_s, tuple(ledger.stages_s.items())),
        usage=UsageStatus.made(
            replica_hours=f"{ledger.replica_hours:.4f}",
            accelerator_hours=f"{ledger.accelerator_hours:.4f}",
            cost=f"{ledger.cost:.4f}",
            since=rfc3339(ledger.since) if ledger.since is not None else None,
        ),
        last_decision=ledger.last,
        decision_history=list(ledger.decisions),
        recommendation=memory.recommendation,
        endpoint=observation.endpoint,
        conditions=[
            _condition(kind, finding, transitions[kind].since, newest if kind in _OF_THE_NEWEST else generation)
            for kind, finding in found.items()
        ],
        summary=summarize(
            deployment.served_model_names[0], spec.variant.name, spec.slos, results, effective, ready, wanted
        ),
        memory="",
    )
    return memory, status


@lru_cache(maxsize=1024)
def _condition(kind: ConditionType, finding: Finding, since: float, generation: int) -> Condition:
    """Most conditions are those of the turn before, word for word."""
    return Condition.made(
        type=kind,
        status=finding.status,
        reason=finding.reason,
        message=finding.message[:_LONGEST_MESSAGE],
        last_transition_time=rfc3339(since),
        observed_generation=generation,
    )


def _slo_status(slo: Slo, signals: Signals, ledger: Ledger) -> SloStatus:
    seen, left = signals.classes[slo.name], ledger.budget_left(slo)
    return SloStatus.made(
        name=slo.name,
        ttft_milliseconds=round(seen.ttft_s * 1000) if seen.ttft_s is not None else None,
        tpot_milliseconds=round(seen.tpot_s * 1000) if seen.tpot_s is not None else None,
        attainment_percent=f"{seen.attainment * 100:.2f}" if seen.attainment is not None else None,
        error_budget_remaining_percent=f"{left * 100:.2f}" if left is not None else None,
        requests=round(seen.requests),
    )


def _strays(observation: Observation, decided: LimitsMemory) -> tuple[Replica, ...]:
    """Ready replicas that have told of other limits than were decided."""
    others = different(observation, decided)
    return tuple([r for r, state in others if not decided.allows(r.id, state.limits, state.envelope)])


def _effective(
    observation: Observation, memory: Memory, strays: Sequence[Replica], mode: Mode
) -> EffectiveBatchLimits | None:
    """The limits that were decided; in mode Shadow those that the engines have by themselves."""
    limits, num_applied = memory.limits.limits, len(limits_told(observation)) - len(strays)
    if mode is Mode.SHADOW:
        theirs = [state.limits for _, state in limits_told(observation)]
        limits = theirs[0] if theirs else None
        num_applied = theirs.count(theirs[0]) if theirs else 0
    if limits is None:
        return None
    changed_at = memory.limits.changed_at if mode is not Mode.SHADOW else None
    return EffectiveBatchLimits.made(
        max_sequences=limits.max_sequences,
        max_batched_tokens=limits.max_batched_tokens,
        applied_replicas=num_applied,
        last_change_time=rfc3339(changed_at) if changed_at is not None else None,
        reason="ModeShadow" if mode is Mode.SHADOW else memory.limits.message or memory.limits.reason,
        on_trial=_on_trial(memory.limits.canary.trial) if mode is not Mode.SHADOW else None,
    )


def _on_trial(trial: Trial | None) -> LimitsOnTrial | None:
    if trial is None:
        return None
    return LimitsOnTrial(
        replica=trial.replica,
        max_sequences=trial.limits.max_sequences,
        max_batched_tokens=trial.limits.max_batched_tokens,
        since=rfc3339(trial.since),
    )


@lru_cache(maxsize=1024)
def _startup(
    startups_s: tuple[float, ...], stages_s: tuple[tuple[StartupPhase, tuple[float, ...]], ...]
) -> StartupStatus:
    """Kept, because starts are rare among turns."""
    by_phase = dict(stages_s)
    return StartupStatus(
        p50_seconds=_whole(quantile(startups_s, 0.5)),
        p90_seconds=_whole(quantile(startups_s, 0.9)),
        samples=len(startups_s),
        phases=[
            StartupPhaseStatus(
                name=phase, p50_seconds=_whole(quantile(seconds, 0.5)), p90_seconds=_whole(quantile(seconds, 0.9))
            )
            for phase in StartupPhase
            if (seconds := by_phase.get(phase))
        ],
    )


def _whole(seconds: float | None) -> int | None:
    return round(seconds) if seconds is not None else None
