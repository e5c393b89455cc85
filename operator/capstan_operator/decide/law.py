"""`decide`: from what is declared, seen and remembered to what is done. Pure: equal inputs give an equal decision.

    signals ─► engine model ─► batch limits ─► replicas ─► rollout ─► actions, status, memory

Limits move first and fast; replicas follow when limits have no room left or spare room is proven. Knows no HTTP,
process or cluster, and reads no clock: `now` is epoch seconds.
"""

import hashlib

from capstan_api.spec import LimitsMode, Mode, Slo
from capstan_api.status import DecisionAction, DecisionStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import batch_limits, render, replicas, rollout, signals, status
from capstan_operator.decide.carry_out import actions
from capstan_operator.decide.decision import Decision
from capstan_operator.decide.engine_model import EngineModel
from capstan_operator.decide.ledger import Ledger
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.observation import Observation, Phase
from capstan_operator.decide.times import rfc3339

_SHORTEST_WINDOW_S, _LONGEST_WINDOW_S = 10.0, 60.0
_ENOUGH_FIRST_TOKENS = 4


def decide(deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float) -> Decision:
    """One turn of the control loop. Deciding again in an unchanged world does nothing but renew leases."""
    # A clock that was set back must not undo what has been waited for.
    now = max(now, memory.at)
    spec = deployment.spec
    revision = render.revision(deployment)

    reading = _read(deployment, observation, memory, now)
    # What another revision's engines took says nothing of these.
    same_engines = memory.revision in ("", revision)
    model = (memory.model if same_engines else EngineModel()).learn(reading.samples)
    ledger = memory.ledger.advanced(spec.slos, reading.delta, observation.replicas, memory.at, now)
    limits = _limits(deployment, memory, model, reading, now)
    advice = _replicas(deployment, observation, memory, model, ledger, limits.memory, reading, now)
    count = _in_shadow(deployment, memory, advice) if spec.scaling.mode is Mode.SHADOW else advice
    wanted = count.memory.wanted or 0
    plan = rollout.plan(
        observation.replicas,
        name=deployment.metadata.name,
        revision=revision,
        wanted=wanted,
        max_surge=spec.rollout.max_surge,
        max_unavailable=spec.rollout.max_unavailable,
        load=reading.signals.load,
    )

    speaker = _Speaker(now, _digest(deployment, observation, memory, now))
    changes = speaker.changes(memory, revision, count, limits)
    said = changes[0] if changes else speaker.hold(wanted, count)
    remembered = Memory(
        at=now,
        revision=revision,
        model=model,
        lengths=reading.lengths,
        limits=limits.memory,
        replicas=count.memory,
        ledger=ledger.noted(said, changes),
        window=reading.window,
    )
    remembered, report = status.report(
        deployment,
        observation,
        remembered,
        reading.signals,
        plan,
        said=said,
        recommendation=speaker.recommendation(wanted, advice) if count is not advice else None,
        now=now,
    )
    return Decision(
        at=now,
        actions=actions(deployment, observation, plan, remembered),
        said=said,
        changes=changes,
        signals=reading.signals,
        memory=remembered,
        status=report,
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


def _limits(
    deployment: InferenceDeployment, memory: Memory, model: EngineModel, reading: signals.Reading, now: float
) -> batch_limits.Advice:
    policy, envelope = deployment.spec.scaling.batch_limits, render.envelope(deployment)
    if policy.mode is LimitsMode.FIXED or deployment.spec.scaling.mode is Mode.SHADOW:
        return batch_limits.Advice(memory=batch_limits.LimitsMemory(limits=envelope.top, reason="Fixed"))
    return batch_limits.adjust(
        memory.limits,
        batch_limits.Situation(
            model=model,
            lengths=reading.lengths,
            signals=reading.signals,
            target=_target(deployment.spec.slos, reading.signals),
            kv_tokens=_kv_tokens(deployment, reading),
        ),
        envelope,
        policy,
        now,
    )


def _replicas(
    deployment: InferenceDeployment,
    observation: Observation,
    memory: Memory,
    model: EngineModel,
    ledger: Ledger,
    limits: batch_limits.LimitsMemory,
    reading: signals.Reading,
    now: float,
) -> replicas.Advice:
    spec, seen = deployment.spec, reading.signals
    target, kv_tokens = _target(spec.slos, seen), _kv_tokens(deployment, reading)
    max_sequences = spec.engine.batching.max_sequences
    live = [replica for replica in observation.replicas if replica.phase is not Phase.DRAINING]
    situation = replicas.Situation(
        signals=seen,
        limits=limits,
        serves=replicas.capacity(model, reading.lengths, target, max_sequences, kv_tokens),
        missed=_missed(spec.slos, seen),
        tpot=target,
        num_live=len(live),
        num_ready=sum(1 for replica in live if replica.phase is Phase.READY),
        startup_s=ledger.startup_s(0.5),
    )
    return replicas.advise(memory.replicas, situation, spec.scaling, now)


def _in_shadow(deployment: InferenceDeployment, memory: Memory, advice: replicas.Advice) -> replicas.Advice:
    """Replicas stay as they are, or as a person has set them."""
    scaling = deployment.spec.scaling
    kept = scaling.replicas if scaling.replicas is not None else memory.replicas.wanted
    kept = advice.memory.wanted if kept is None else kept
    return advice.model_copy(update={"memory": advice.memory.model_copy(update={"wanted": kept})})


class _Speaker:
    """Words what was decided at one moment."""

    def __init__(self, now: float, inputs_hash: str) -> None:
        self._time = rfc3339(now)
        self._inputs_hash = inputs_hash

    def changes(
        self, memory: Memory, revision: str, count: replicas.Advice, limits: batch_limits.Advice
    ) -> tuple[DecisionStatus, ...]:
        """What is different from the last turn on, the slowest first."""
        changes = []
        before, wanted = memory.replicas.wanted, count.memory.wanted
        if before is not None and wanted is not None and wanted != before:
            action = DecisionAction.SCALE_UP if wanted > before else DecisionAction.SCALE_DOWN
            changes.append(self._said(action, count.reason, count.message, before, wanted))
        if memory.revision and revision != memory.revision:
            message = f"the specification changed: revision {memory.revision} → {revision}"
            changes.append(self._said(DecisionAction.ROLL, "SpecificationChanged", message, memory.revision, revision))
        if limits.previous is not None and limits.memory.limits is not None:
            old, new = (f"{x.max_sequences}x{x.max_batched_tokens}" for x in (limits.previous, limits.memory.limits))
            changes.append(self._said(DecisionAction.SET_LIMITS, limits.memory.reason, limits.memory.message, old, new))
        return tuple(changes)

    def hold(self, wanted: int, count: replicas.Advice) -> DecisionStatus:
        return self._said(DecisionAction.HOLD, count.reason, count.message, wanted, wanted)

    def recommendation(self, kept: int, advice: replicas.Advice) -> DecisionStatus:
        action = DecisionAction.HOLD
        if advice.recommended != kept:
            action = DecisionAction.SCALE_UP if advice.recommended > kept else DecisionAction.SCALE_DOWN
        return self._said(action, advice.reason, advice.message, kept, advice.recommended)

    def _said(self, action: DecisionAction, reason: str, message: str, old: object, new: object) -> DecisionStatus:
        return DecisionStatus(
            time=self._time,
            action=action,
            reason=reason,
            message=message,
            from_value=str(old),
            to_value=str(new),
            inputs_hash=self._inputs_hash,
        )


def _objectives(slo: Slo) -> signals.Objectives:
    return signals.Objectives(
        name=slo.name,
        ttft_share=slo.ttft.percentile / 100 if slo.ttft else 0.95,
        tpot_share=slo.tpot.percentile / 100 if slo.tpot else 0.95,
    )


def _kv_tokens(deployment: InferenceDeployment, reading: signals.Reading) -> float:
    return reading.signals.kv_blocks * deployment.spec.engine.kv_cache.block_size


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
