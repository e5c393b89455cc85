"""From a decided state to the actions that bring the world there, in the order in which they should be carried out.

The gateways come first, and are told of a departure before it begins; limits come before departures, because they
protect what is being served. What is already so needs no action.
"""

from collections.abc import Iterable, Set
from operator import attrgetter
from typing import Final, TypeAlias

from capstan_api.replicas import ReplicaEntry, ReplicaState
from capstan_api.scaling import Mode
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import render
from capstan_operator.decide.actions import (
    Action,
    DrainReplica,
    EnsureGateway,
    Route,
    SetLimits,
    StartReplica,
    StopReplica,
)
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.limits.obedience import different, figures, limits_told
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.render import Release
from capstan_operator.decide.rollout import Plan
from capstan_operator.decide.seen.observation import Observation, Phase

_SHORTEST_LEASE_S, _LONGEST_LEASE_S = 30, 3600
_LONGEST_REASON = 500
_Row: TypeAlias = tuple[str, str, ReplicaState]
_ROW: Final = attrgetter("id", "url", "state")


def actions(
    deployment: InferenceDeployment, observation: Observation, release: Release, plan: Plan, memory: Memory
) -> tuple[Action, ...]:
    """Everything to do now; empty when the world is as it should be and no lease is half over.

    `release` is what replicas are started as.
    """
    spec = deployment.spec
    wanted: list[Action] = []
    gateway_revision = render.gateway_revision(deployment)
    staying = [gateway for gateway in observation.gateways if gateway.phase is not Phase.DRAINING]
    if not staying or any(gateway.revision != gateway_revision for gateway in staying):
        wanted.append(EnsureGateway(revision=gateway_revision, args=render.gateway_args(deployment)))
    # A release of before has its own model.
    if observation.model_directory is not None or release.revision != memory.rollout.target:
        wanted += [
            StartReplica(id=i, revision=release.revision, args=release.args, cpu_millicores=release.cpu_millicores)
            for i in plan.start
        ]
    rows = _rows(observation, set(plan.drain))
    unaware = tuple([g.id for g in observation.ready_gateways if g.table is not None and _entries(g.table) != rows])
    if unaware:
        wanted.append(Route(gateways=unaware, table=tuple(ReplicaEntry(id=i, url=u, state=s) for i, u, s in rows)))
    if spec.scaling.mode is not Mode.SHADOW:
        wanted += _limits(observation, memory.limits, spec.scaling.batch_limits.adjustment_interval_seconds)
    timeout_s = spec.disruption.drain_timeout_seconds
    wanted += [DrainReplica(id=i, timeout_seconds=timeout_s) for i in plan.drain]
    wanted += [StopReplica(id=i) for i in plan.stop]
    return tuple(wanted)


def _rows(observation: Observation, leaving: Set[str]) -> list[_Row]:
    """The table that gateways are to have; the `leaving` replicas get nothing new from now on."""
    ready, draining = ReplicaState.READY, ReplicaState.DRAINING
    rows = [(r.id, url, ready) for r in observation.with_phase(Phase.READY) if (url := r.url) is not None]
    if leaving:
        rows = [(key, url, draining if key in leaving else ready) for key, url, _ in rows]
    rows += [(r.id, url, draining) for r in observation.with_phase(Phase.DRAINING) if (url := r.url) is not None]
    return sorted(rows)


def _entries(table: Iterable[ReplicaEntry]) -> list[_Row]:
    return list(map(_ROW, table))


def _limits(observation: Observation, memory: LimitsMemory, interval_s: int) -> list[SetLimits]:
    """Limits for every engine that has others, and renewals for leases that are half over."""
    lease_s = min(max(_SHORTEST_LEASE_S, 6 * interval_s), _LONGEST_LEASE_S)
    changes, others = [], {replica.id for replica, _ in different(observation, memory)}
    # An engine that drains refuses changes: it gets no more load, and its lease outlives most of what it has.
    for replica, state in limits_told(observation):
        left_s = state.lease_remaining_seconds
        # Without a lease the defaults are in force, and they last.
        lasts = left_s is None or left_s > lease_s / 2
        if lasts and not (others and replica.id in others):
            continue
        decided = memory.of(replica.id)
        if decided is None:
            continue
        limits = state.envelope.clamp(decided)
        renewal = figures(limits) == figures(state.limits)
        if lasts and renewal:
            continue
        changes.append(
            SetLimits(
                id=replica.id,
                limits=limits,
                version=state.version,
                lease_seconds=lease_s,
                reason=(memory.message or memory.reason)[:_LONGEST_REASON],
                is_renewal=renewal,
            )
        )
    return changes
