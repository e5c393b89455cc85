"""`decide`: from what is declared, seen and remembered to what is done. Pure: equal inputs give an equal decision.

    signals ─► engine model ─► batch limits ─► replicas ─► progress, rollout ─► actions, status, memory

Limits move first and fast; replicas follow when limits have no room left or spare room is proven. Knows no HTTP,
process or cluster, and reads no clock: `now` is epoch seconds.
"""

import hashlib
from pathlib import Path

from capstan_api.spec import LimitsMode, Mode, Slo
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import batch_limits, render, replicas, rollout, signals, status
from capstan_operator.decide.carry_out import actions
from capstan_operator.decide.decision import Decision
from capstan_operator.decide.engine_model import EngineModel
from capstan_operator.decide.ledger import Ledger
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.observation import Observation, Phase, Replica
from capstan_operator.decide.progress import RolloutMemory
from capstan_operator.decide.speaker import Speaker

_SHORTEST_WINDOW_S, _LONGEST_WINDOW_S = 10.0, 60.0
_ENOUGH_FIRST_TOKENS = 4


def decide(deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float) -> Decision:
    """One turn of the control loop. Deciding again in an unchanged world does nothing but renew leases."""
    # A clock that was set back must not undo what has been waited for.
    now = max(now, memory.at)
    spec = deployment.spec
    reading = _read(deployment, observation, memory, now)
    progress, release = _progress(deployment, observation, memory, now)
    # What another revision's engines took says nothing of these.
    same_engines = memory.revision in ("", release.revision)
    model = (memory.model if same_engines else EngineModel()).learn(reading.samples)
    ledger = memory.ledger.advanced(spec.slos, reading.delta, observation.replicas, memory.at, now)
    overdue = _overdue(observation, spec.scaling.pending_timeout_seconds, now)
    limits = _limits(deployment, release, memory, model, reading, now)
    situation = _situation(deployment, observation, release, model, ledger, limits.memory, reading, len(overdue))
    advice = replicas.advise(_rested(memory, deployment, now), situation, spec.scaling, now)
    count = _in_shadow(deployment, memory, advice) if spec.scaling.mode is Mode.SHADOW else advice
    wanted = count.memory.wanted or 0
    plan = rollout.plan(
        observation.replicas,
        name=deployment.metadata.name,
        revision=release.revision,
        wanted=wanted,
        max_surge=spec.rollout.max_surge,
        max_unavailable=spec.rollout.max_unavailable,
        load=reading.signals.load,
        cache_value=reading.signals.cache_value,
    )

    speaker = Speaker(now, lambda: _digest(deployment, observation, memory, now))
    in_shadow = spec.scaling.mode is Mode.SHADOW
    changes = speaker.changes(memory, release.revision, progress.failure, count, None if in_shadow else limits)
    said = changes[0] if changes else speaker.hold(wanted, count, memory.ledger.last)
    recommendation = None
    if in_shadow:
        recommendation = speaker.recommendation(wanted, advice, limits.memory, release, memory.recommendation)
    remembered = Memory(
        at=now,
        revision=release.revision,
        rollout=progress,
        model=model,
        lengths=reading.lengths,
        limits=limits.memory,
        replicas=count.memory,
        ledger=ledger.noted(said, changes),
        recommendation=recommendation,
        window=reading.window,
    )
    remembered, report = status.report(
        deployment, observation, remembered, reading.signals, plan, said=said, overdue=overdue, now=now
    )
    stable = progress.stable
    return Decision(
        at=now,
        actions=actions(deployment, observation, release, plan, remembered),
        said=said,
        changes=changes,
        signals=reading.signals,
        memory=remembered,
        status=report,
        revisions=frozenset({progress.target, release.revision, *([stable.revision] if stable else [])}),
    )


def _read(deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float) -> signals.Reading:
    scaling = deployment.spec.scaling
    span_s = float(scaling.behavior.scale_up.stabilization_window_seconds)
    return signals.read(
        observation,
        memory.window,
        memory.lengths,
        [_objectives(slo) for slo in deployment.spec.slos],
        now,
        span_s=min(max(_SHORTEST_WINDOW_S, span_s), _LONGEST_WINDOW_S),
        max_age_s=scaling.stale_metrics.max_age_seconds,
    )


def _progress(
    deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float
) -> tuple[RolloutMemory, render.Release]:
    """How the rollout gets on, and the release in force."""
    spec = deployment.spec
    target = render.release(deployment, Path(observation.model_directory or ""))
    progress = memory.rollout.followed(
        target,
        observation.replicas,
        spec.rollout,
        wanted=memory.replicas.wanted or 0,
        last=memory.at,
        now=now,
        obstacle="; ".join(observation.faults if observation.model_directory is None else observation.refused_starts),
    )
    return progress, progress.in_force(target, spec.rollout.auto_rollback)


def _overdue(observation: Observation, timeout_s: int, now: float) -> tuple[Replica, ...]:
    """Replicas that have been pending for too long."""
    return tuple(r for r in observation.with_phase(Phase.PENDING) if now - r.created_at > timeout_s)


def _rested(memory: Memory, deployment: InferenceDeployment, now: float) -> replicas.ReplicasMemory:
    """The memory of replicas; after an absence nobody knows that there was no request meanwhile."""
    if now - memory.at <= deployment.spec.scaling.stale_metrics.max_age_seconds:
        return memory.replicas
    return memory.replicas.model_copy(update={"active_at": now})


def _limits(
    deployment: InferenceDeployment,
    release: render.Release,
    memory: Memory,
    model: EngineModel,
    reading: signals.Reading,
    now: float,
) -> batch_limits.Advice:
    policy, envelope = deployment.spec.scaling.batch_limits, release.args.envelope
    if policy.mode is LimitsMode.FIXED:
        return batch_limits.Advice(memory=batch_limits.LimitsMemory(limits=envelope.top, reason="Fixed"))
    return batch_limits.adjust(
        memory.limits,
        batch_limits.Situation(
            model=model,
            lengths=reading.lengths,
            signals=reading.signals,
            target=_target(deployment.spec.slos, reading.signals),
            kv_tokens=reading.signals.kv_blocks * release.args.block_size,
        ),
        envelope,
        policy,
        now,
    )


def _situation(
    deployment: InferenceDeployment,
    observation: Observation,
    release: render.Release,
    model: EngineModel,
    ledger: Ledger,
    limits: batch_limits.LimitsMemory,
    reading: signals.Reading,
    num_overdue: int,
) -> replicas.Situation:
    spec, seen = deployment.spec, reading.signals
    target, kv_tokens = _target(spec.slos, seen), seen.kv_blocks * release.args.block_size
    max_sequences = release.args.envelope.max_sequences
    live = [replica for replica in observation.replicas if replica.phase is not Phase.DRAINING]
    return replicas.Situation(
        signals=seen,
        limits=limits,
        serves=replicas.capacity(model, reading.lengths, target, max_sequences, kv_tokens),
        missed=_missed(spec.slos, seen),
        tpot=target,
        num_live=len(live),
        num_ready=sum(1 for replica in live if replica.phase is Phase.READY),
        num_overdue=num_overdue,
        startup_s=ledger.startup_s(0.5),
    )


def _in_shadow(deployment: InferenceDeployment, memory: Memory, advice: replicas.Advice) -> replicas.Advice:
    """Replicas stay as they are, or as a person has set them."""
    scaling = deployment.spec.scaling
    kept = scaling.replicas if scaling.replicas is not None else memory.replicas.wanted
    kept = advice.memory.wanted if kept is None else kept
    return advice.model_copy(update={"memory": advice.memory.model_copy(update={"wanted": kept})})


def _objectives(slo: Slo) -> signals.Objectives:
    return signals.Objectives(
        name=slo.name,
        ttft_share=slo.ttft.percentile / 100 if slo.ttft else 0.95,
        tpot_share=slo.tpot.percentile / 100 if slo.tpot else 0.95,
    )


def _target(slos: list[Slo], seen: signals.Signals) -> batch_limits.Target | None:
    """The tightest TPOT threshold of all classes, with the measurement of the class that is worst off."""
    with_tpot = [(slo, slo.tpot) for slo in slos if slo.tpot]
    if not with_tpot:
        return None
    tightest_s = min(tpot.threshold_milliseconds for _, tpot in with_tpot) / 1000
    targets = [
        batch_limits.Target(
            threshold_s=tightest_s,
            percentile=tpot.percentile,
            class_threshold_s=tpot.threshold_milliseconds / 1000,
            measured_s=seen.classes[slo.name].tpot_s,
            num_measured=seen.classes[slo.name].num_tpot,
        )
        for slo, tpot in with_tpot
    ]
    return max(targets, key=lambda target: target.ratio if target.ratio is not None else -1)


def _missed(slos: list[Slo], seen: signals.Signals) -> replicas.Missed | None:
    """The TTFT threshold that is missed most, if any is."""
    missed = []
    for slo in slos:
        measured = seen.classes[slo.name]
        if slo.ttft is None or measured.ttft_s is None or measured.num_ttft < _ENOUGH_FIRST_TOKENS:
            continue
        threshold_s = slo.ttft.threshold_milliseconds / 1000
        if measured.ttft_s > threshold_s:
            missed.append(
                replicas.Missed(percentile=slo.ttft.percentile, measured_s=measured.ttft_s, threshold_s=threshold_s)
            )
    return max(missed, key=lambda m: m.measured_s / m.threshold_s, default=None)


def _digest(deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float) -> str:
    inputs = hashlib.sha256()
    for part in (deployment.model_dump_json(exclude={"status"}), observation.to_json(), memory.to_json(), repr(now)):
        inputs.update(part.encode())
    return inputs.hexdigest()[:16]
