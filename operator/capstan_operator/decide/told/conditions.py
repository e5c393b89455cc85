"""The conditions of `status`: one finding for each continuous state, in the sense of kstatus.

Knows neither when a condition began nor who writes it. Two of them, `Reconciling` and `Stalled`, follow kstatus in
being there only while they are true: GitOps tools wait for the first to go and give up at the second.
"""

from collections.abc import Iterable
from typing import NamedTuple

from capstan_api.scaling import Mode
from capstan_api.spec import Slo
from capstan_api.startup import StartupPhase
from capstan_api.status import ConditionStatus, ConditionType, DecisionStatus, SloStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide.feasibility import TOO_SLOW, Pace, too_slow
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.rollout import Plan
from capstan_operator.decide.scaling.demand import Demand
from capstan_operator.decide.seen.observation import Observation, Phase, Replica
from capstan_operator.decide.seen.signals import Signals
from capstan_operator.decide.verdicts import INFEASIBLE, SOURCE

_CRASH_LOOP_RESTARTS = 3
# After a change of the limits, until engines must have them.
_APPLYING_S = 10.0
# Of the predicted time over the threshold: what was called infeasible is feasible again only under this.
_FEASIBLE_AGAIN = 0.95
_NAMED = 4
_TRUE, _FALSE, _UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


class Finding(NamedTuple):
    """A condition without its times."""

    status: ConditionStatus
    reason: str
    message: str


class Scene(NamedTuple):
    """Everything that conditions speak of. `overdue` have been pending for too long; `demand` is of a shared budget;
    `strays` have other limits than were decided.
    """

    deployment: InferenceDeployment
    observation: Observation
    memory: Memory
    signals: Signals
    plan: Plan
    results: tuple[SloStatus, ...]
    said: DecisionStatus
    overdue: tuple[Replica, ...]
    demand: Demand | None
    strays: tuple[Replica, ...]
    now: float


def findings(scene: Scene) -> dict[ConditionType, Finding]:
    """Every condition that holds, denials included."""
    available, fresh = _available(scene), _fresh(scene)
    progressing, valid, healthy = _progressing(scene), _valid(scene), _healthy(scene)
    ready = fresh if available.status is _TRUE and fresh.status is _FALSE else available
    found = {
        ConditionType.READY: ready,
        ConditionType.AVAILABLE: available,
        ConditionType.PROGRESSING: progressing,
        ConditionType.ROLLOUT_HEALTHY: healthy,
        ConditionType.SLO_MET: _slo_met(scene.deployment.spec.slos, scene.results),
        ConditionType.SCALING_ACTIVE: _scaling_active(scene.deployment.spec.scaling.mode, scene.said),
        ConditionType.CAPACITY_AVAILABLE: _capacity(scene),
        ConditionType.MODEL_CACHED: _model_cached(scene),
        ConditionType.FEASIBLE: _feasible(scene),
        ConditionType.METRICS_FRESH: fresh,
        ConditionType.BATCH_LIMITS_APPLIED: _limits_applied(scene),
        ConditionType.CONFIGURATION_VALID: valid,
    }
    stalled = next((f for f in (valid, healthy, progressing) if f.status is _FALSE and f.reason != "Settled"), None)
    if stalled is not None:
        found[ConditionType.STALLED] = Finding(_TRUE, stalled.reason, stalled.message)
    elif progressing.reason == "RollingOut":
        found[ConditionType.RECONCILING] = progressing
    return found


def _available(scene: Scene) -> Finding:
    observation, wanted = scene.observation, scene.memory.replicas.wanted
    ready = observation.with_phase(Phase.READY)
    if not observation.ready_gateways:
        why = next((g.message for g in observation.gateways if g.message), "it is starting")
        return Finding(_FALSE, "GatewayNotReady", f"the gateway does not answer: {why}")
    if ready:
        return Finding(_TRUE, "ReplicasReady", f"{len(ready)} of {wanted} replicas are ready")
    if wanted == 0:
        return Finding(_TRUE, "ScaledToZero", "the first request starts a replica and is held until it is ready")
    if observation.model_directory is None:
        return Finding(_FALSE, "ModelNotFound", _no_model(observation))
    failed, pending = observation.with_phase(Phase.FAILED), observation.with_phase(Phase.PENDING)
    if failed:
        return Finding(_FALSE, "ReplicasFailing", _failure(failed[0]))
    if pending and not observation.with_phase(Phase.STARTING):
        return Finding(_FALSE, "ReplicasPending", _waiting(pending))
    return Finding(_FALSE, "ReplicasStarting", "no replica is ready yet")


def _progressing(scene: Scene) -> Finding:
    observation, plan = scene.observation, scene.plan
    looping = [r for r in observation.with_phase(Phase.FAILED) if r.restarts >= _CRASH_LOOP_RESTARTS]
    if looping:
        return Finding(_FALSE, "CrashLoop", _failure(looping[0]))
    revision, leaving = scene.memory.revision, observation.with_phase(Phase.DRAINING)
    others = [r for r in observation.replicas if r.revision != revision and r.phase is not Phase.DRAINING]
    starting = observation.with_phase(Phase.PENDING, Phase.STARTING, Phase.FAILED)
    if others or (starting and scene.memory.rollout.is_underway):
        return Finding(_TRUE, "RollingOut", f"replicas of revision {revision} take over")
    num_starting = len(starting) + len(plan.start)
    num_leaving = len(leaving) + len(plan.drain) + len(plan.stop)
    if num_starting or num_leaving:
        return Finding(_TRUE, "Scaling", f"{num_starting} replicas are starting, {num_leaving} are leaving")
    return Finding(_FALSE, "Settled", "all replicas are as wanted")


def _healthy(scene: Scene) -> Finding:
    rollout, revision = scene.memory.rollout, scene.memory.revision
    if rollout.failure is not None and revision != rollout.target:
        back = f"revision {rollout.target} failed, revision {revision} serves until the specification changes"
        return Finding(_FALSE, "RolledBack", f"{back}: {rollout.failure}")
    if rollout.failure is not None:
        return Finding(_FALSE, "RolloutFailed", f"revision {rollout.target}: {rollout.failure}")
    if rollout.is_underway:
        return Finding(_UNKNOWN, "RollingOut", f"revision {rollout.target} has not proved itself yet")
    return Finding(_TRUE, "Stable", f"every replica of revision {rollout.target} became ready")


def _fresh(scene: Scene) -> Finding:
    signals = scene.signals
    if signals.blind:
        return Finding(_FALSE, "Blind", f"no word from {signals.missing}: the last decision holds")
    if signals.rejected:
        return Finding(_FALSE, "Rejected", "; ".join(signals.rejected))
    # One look that went wrong is no news: the words of the one before are still young enough.
    if not signals.gateway_seen and scene.memory.window.looked_at is None:
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
        return Finding(_TRUE, "ModeAuto", said.message)
    what = "replicas are set by hand" if mode is Mode.MANUAL else "decisions are only recommended"
    return Finding(_FALSE, f"Mode{mode.value}", what)


def _capacity(scene: Scene) -> Finding:
    if scene.overdue:
        return Finding(_FALSE, "Unschedulable", _waiting(scene.overdue))
    if refused := scene.observation.refused_starts:
        return Finding(_FALSE, "Refused", "; ".join(refused))
    left, demand = scene.observation.allowance, scene.demand
    if left is not None and demand is not None and demand.asked > left.replicas:
        message = f"the accelerator budget {left.budget} leaves {left.replicas}, {demand.asked} are asked for"
        return Finding(_FALSE, "AcceleratorBudget", message)
    pending = scene.observation.with_phase(Phase.PENDING)
    if pending:
        return Finding(_UNKNOWN, "Placing", _waiting(pending))
    return Finding(_TRUE, "Placed", "every replica has a place to run")


def _model_cached(scene: Scene) -> Finding:
    observation, source = scene.observation, scene.deployment.spec.model.source
    if observation.model_directory is None:
        return Finding(_FALSE, "ModelNotFound", _no_model(observation))
    if not source.is_fetched:
        return Finding(_TRUE, "NotFetched", f"{source.uri} is there when an engine starts")
    ours = [r for r in observation.replicas if r.revision == scene.memory.rollout.target]
    refused = next((r for r in ours if r.phase is Phase.FAILED and r.message.startswith(SOURCE)), None)
    if refused is not None:
        return Finding(_FALSE, "FetchFailed", f"{refused.id}: {refused.message.removeprefix(SOURCE).strip()}")
    reports = {r.id: r.startup for r in ours if r.startup is not None}
    for phase in (StartupPhase.FETCHING, StartupPhase.VERIFYING):
        for key, report in reports.items():
            if report.phase is phase:
                return Finding(_FALSE, phase.value, f"{key}: {report.message or 'no amount is known yet'}")
    if reports or any(r.phase is Phase.READY or r.phase is Phase.DRAINING for r in ours):
        return Finding(_TRUE, "Fetched", f"{source.uri} was fetched")
    return Finding(_UNKNOWN, "NotYetFetched", "no replica has begun to fetch it")


def _feasible(scene: Scene) -> Finding:
    rollout, ours = scene.memory.rollout, scene.observation.with_phase(Phase.FAILED)
    refusals = [r.message for r in ours if r.revision == rollout.target]
    refusals += [(rollout.failure or "").partition(": ")[2]]
    refusal = next((words for words in refusals if words.startswith(INFEASIBLE)), None)
    if refusal is not None:
        return Finding(_FALSE, "Infeasible", refusal.removeprefix(INFEASIBLE).strip())
    pace = Pace.made(model=scene.memory.model, lengths=scene.memory.lengths)
    if not pace.is_known:
        if rollout.is_underway:
            return Finding(_UNKNOWN, "NotYetKnown", "no engine of this revision has run yet")
        return Finding(_TRUE, "EngineRuns", "the engine runs; how fast it is has yet to be learnt")
    before = scene.memory.ledger.transitions.get(ConditionType.FEASIBLE)
    bound = _FEASIBLE_AGAIN if before is not None and before.status is _FALSE else TOO_SLOW
    doubts = list(too_slow(scene.deployment.spec, pace, bound))
    if doubts:
        return Finding(_FALSE, "SLOInfeasible", "; ".join(map(str, doubts)))
    return Finding(_TRUE, "Feasible", "the engine runs, and one request alone is faster than any threshold asks for")


def _limits_applied(scene: Scene) -> Finding:
    if scene.deployment.spec.scaling.mode is Mode.SHADOW:
        return Finding(_UNKNOWN, "ModeShadow", "limits are left as they are")
    limits = scene.memory.limits.limits
    if limits is None or not scene.observation.with_phase(Phase.READY):
        return Finding(_UNKNOWN, "NoReplicaReady", "no engine is there to have limits")
    changed_at = scene.memory.limits.changed_at or 0.0
    late = [r.id for r in scene.strays if scene.now - max(changed_at, r.ready_at or 0.0) > _APPLYING_S]
    if late:
        return Finding(_FALSE, "Pending", f"not yet in force on {_named(late)}")
    return Finding(_TRUE, "InForce", f"{limits.max_sequences} sequences, {limits.max_batched_tokens} tokens a step")


def _valid(scene: Scene) -> Finding:
    fault = scene.observation.configuration_fault
    if fault is not None:
        return Finding(_FALSE, "InvalidSpec", f"the last valid specification stays in force: {fault.message}")
    return Finding(_TRUE, "Valid", "the specification is in force")


def _no_model(observation: Observation) -> str:
    return "; ".join(observation.faults) or "the model was not found"


def _failure(replica: Replica) -> str:
    return f"{replica.id} has failed {replica.restarts + 1} times: {replica.message or 'no reason was given'}"


def _waiting(pending: Iterable[Replica]) -> str:
    """Who waits for room, by what the world says of the reason."""
    by_reason: dict[str, list[str]] = {}
    for replica in pending:
        by_reason.setdefault(replica.message or "no reason was given", []).append(replica.id)
    return "; ".join(f"{_named(keys)}: {why}" for why, keys in by_reason.items())


def _named(keys: list[str]) -> str:
    more = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {more} more" if more > 0 else "")
