"""`decide`: from what is declared, seen and remembered to what is done. Pure: equal inputs give an equal decision.

    signals ─► engine model ─► batch limits ─► virtual fleets ─► sizing, replicas ─► progress, rollout ─► actions

Limits move first and fast; the virtual fleets know them, so that replicas are counted with what limits can do.
Knows no HTTP, process or cluster, and reads no clock: `now` is epoch seconds.
"""

import hashlib

from capstan_api.scaling import Mode
from capstan_api.spec import InferenceDeploymentSpec
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import render, rollout
from capstan_operator.decide.carry_out import actions
from capstan_operator.decide.decision import Decision, Prediction
from capstan_operator.decide.feasibility import Told, model_key
from capstan_operator.decide.fleets.bank import Bank
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.lifelong import lifelong
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.outlook import Outlook
from capstan_operator.decide.progress import RolloutMemory
from capstan_operator.decide.scaling import replicas
from capstan_operator.decide.scaling.demand import demand
from capstan_operator.decide.scaling.sizing import Sizing
from capstan_operator.decide.seen.observation import Observation, Phase, Replica
from capstan_operator.decide.seen.reading import Objectives, Reading, read
from capstan_operator.decide.told import status
from capstan_operator.decide.told.speaker import Speaker

_WINDOW_S = 15.0


def decide(deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float) -> Decision:
    """One turn of the control loop. Deciding again in an unchanged world does nothing but renew leases."""
    # A clock that was set back must not undo what has been waited for.
    now = max(now, memory.at)
    spec = deployment.spec
    reading = _read(deployment, observation, memory, now)
    progress, release = _progress(deployment, observation, memory, now)
    # What another revision's engines took says nothing of these.
    same_engines = memory.revision in ("", release.revision)
    declared = _declared(spec)
    model = (memory.model if same_engines and memory.model.num_samples > 0 else declared).learn(reading.samples)
    ledger = memory.ledger.advanced(spec.slos, spec.variant, reading.delta, observation.replicas, memory.at, now)
    overdue = _overdue(observation, spec.scaling.pending_timeout_seconds, now)
    shape = memory.shape.learn(
        reading.samples, reading.signals.kv_held * release.args.block_size, reading.signals.running, reading.seconds
    )
    outlook = Outlook(spec, release.args, model, reading, shape, ledger, now)
    limits = outlook.limits(memory.limits, observation, overdue)
    bank, feedback = outlook.bank(memory, limits.memory)
    season = outlook.season(memory.season)
    sizing = outlook.sizing(bank, feedback, season)
    situation = outlook.situation(observation, sizing, len(overdue))
    advice = replicas.advise(_rested(memory, deployment, now), situation, sizing, spec.scaling, now)
    count = _in_shadow(deployment, memory, advice) if spec.scaling.mode is Mode.SHADOW else advice
    wanted = count.memory.wanted or 0
    claimed = demand(
        spec.scaling,
        spec.slos,
        observation,
        bank,
        sizing if reading.signals.gateway_seen else None,
        asked=advice.asked,
        wanted=wanted,
        startup_s=situation.startup_s,
        now=now,
    )
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
    # What goes on needs no explanation a second time, and to predict costs as much as to decide.
    is_new = bool(changes) or (recommendation is not None and recommendation is not memory.recommendation)
    remembered = Memory.made(
        at=now,
        revision=release.revision,
        rollout=progress,
        # What is only declared may be declared anew.
        model=EngineModel() if model is declared else model,
        lengths=reading.lengths,
        shape=shape,
        bank=bank,
        feedback=feedback,
        season=season,
        told=_told(deployment, observation, progress.target) or memory.told,
        limits=limits.memory,
        replicas=count.memory,
        ledger=ledger.noted(said, changes),
        recommendation=recommendation,
        window=reading.window,
    )
    remembered, report = status.report(
        deployment,
        observation,
        remembered,
        reading.signals,
        plan,
        said=said,
        overdue=overdue,
        demand=claimed,
        now=now,
    )
    stable = progress.stable
    return Decision.made(
        at=now,
        actions=actions(deployment, observation, release, plan, remembered),
        said=said,
        changes=changes,
        predictions=_predictions(spec, bank, sizing, wanted) if is_new else (),
        margin=sizing.margin if sizing is not None else None,
        verdict=limits.verdict,
        demand=claimed,
        signals=reading.signals,
        memory=remembered,
        status=report,
        revisions=frozenset({progress.target, release.revision, *([stable.revision] if stable else [])}),
    )


def _predictions(
    spec: InferenceDeploymentSpec, bank: Bank, sizing: Sizing | None, wanted: int
) -> tuple[Prediction, ...]:
    if sizing is None:
        return ()
    cost_per_hour, told = float(spec.variant.cost_per_hour), bank.latencies
    classes = _objectives(spec)
    predictions = []
    for count in (wanted - 1, wanted, wanted + 1):
        if count < 1:
            continue
        fleet = sizing.fleet(count)
        ttft = {c.name: told.of_ttft(k, sizing.sizes, fleet, c.ttft_share) for k, c in enumerate(classes)}
        tpot = {c.name: told.of_tpot(sizing.sizes, fleet, c.tpot_share) for c in classes}
        predictions.append(
            Prediction.made(
                replicas=count,
                attainment={name: 1 - share for name, share in sizing.missed(count).items()},
                cost_per_hour=count * cost_per_hour,
                ttft={name: quantiles for name, quantiles in ttft.items() if quantiles is not None},
                tpot={name: quantiles for name, quantiles in tpot.items() if quantiles is not None},
            )
        )
    return tuple(predictions)


def _read(deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float) -> Reading:
    return read(
        observation,
        memory.window,
        memory.lengths,
        _objectives(deployment.spec),
        now,
        span_s=_WINDOW_S,
        max_age_s=deployment.spec.scaling.stale_metrics.max_age_seconds,
    )


def _progress(
    deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float
) -> tuple[RolloutMemory, render.Release]:
    """How the rollout gets on, and the release in force."""
    spec = deployment.spec
    target = render.release(deployment, observation.model_directory or "")
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


def _told(deployment: InferenceDeployment, observation: Observation, revision: str) -> Told | None:
    """What engines of the revision that the resource asks for tell of its model; others may hold another one."""
    figures = [r.figures for r in observation.replicas if r.figures is not None and r.revision == revision]
    return Told(of=model_key(deployment.spec), figures=figures[0]) if figures else None


def _overdue(observation: Observation, timeout_s: int, now: float) -> tuple[Replica, ...]:
    """Replicas that have been pending for too long."""
    return tuple([r for r in observation.with_phase(Phase.PENDING) if now - r.created_at > timeout_s])


def _rested(memory: Memory, deployment: InferenceDeployment, now: float) -> replicas.ReplicasMemory:
    """The memory of replicas; after an absence nobody knows that there was no request meanwhile."""
    if now - memory.at <= deployment.spec.scaling.stale_metrics.max_age_seconds:
        return memory.replicas
    return memory.replicas.changed(active_at=now)


def _in_shadow(deployment: InferenceDeployment, memory: Memory, advice: replicas.Advice) -> replicas.Advice:
    """Replicas stay as they are, or as a person has set them."""
    scaling = deployment.spec.scaling
    kept = scaling.replicas if scaling.replicas is not None else memory.replicas.wanted
    kept = advice.memory.wanted if kept is None else kept
    return advice.changed(memory=advice.memory.changed(wanted=kept))


@lifelong
def _declared(spec: InferenceDeploymentSpec) -> EngineModel:
    """The model of engines that have taken no step yet."""
    step_time = spec.variant.step_time
    return EngineModel() if step_time is None else EngineModel.given(step_time.coefficients)


@lifelong
def _objectives(spec: InferenceDeploymentSpec) -> tuple[Objectives, ...]:
    return tuple(
        Objectives(
            name=slo.name,
            ttft_share=slo.ttft.percentile / 100 if slo.ttft else 0.95,
            tpot_share=slo.tpot.percentile / 100 if slo.tpot else 0.95,
        )
        for slo in spec.slos
    )


def _digest(deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float) -> str:
    inputs = hashlib.sha256(_declaration(deployment))
    for part in (observation.to_json_bytes(), memory.to_json_bytes(), repr(now).encode()):
        inputs.update(part)
    return inputs.hexdigest()[:16]


@lifelong
def _declaration(deployment: InferenceDeployment) -> bytes:
    return deployment.model_dump_json(exclude={"status"}).encode()
