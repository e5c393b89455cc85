"""Carries out a decision's actions, in their order.

One that fails does not stop the others: everything is level-triggered, so the next turn sees what is missing and asks
for it again. Limits of several engines are set at the same time.
"""

import asyncio
from collections.abc import Sequence

from capstan_operator.admin import AdminClient
from capstan_operator.decide.actions import (
    Action,
    DrainReplica,
    EnsureGateway,
    Route,
    SetLimits,
    StartReplica,
    StopReplica,
)
from capstan_operator.errors import CapstanOperatorError
from capstan_operator.world.base import World


async def apply(actions: Sequence[Action], world: World, admin: AdminClient) -> tuple[str, ...]:
    """Returns what went wrong, one clause each; empty when all was done."""
    admin_urls = {facts.id: facts.admin_url for facts in await world.replicas()}
    failures: list[str] = []

    async def attempt(action: Action) -> None:
        try:
            await _carry_out(action, world, admin, admin_urls)
        except CapstanOperatorError as error:
            failures.append(f"{action.kind}: {error}")

    limits = [action for action in actions if isinstance(action, SetLimits)]
    for action in actions:
        if limits and action is limits[0]:
            await asyncio.gather(*(attempt(each) for each in limits))
        elif not isinstance(action, SetLimits):
            await attempt(action)
    return tuple(failures)


async def _carry_out(action: Action, world: World, admin: AdminClient, admin_urls: dict[str, str | None]) -> None:
    match action:
        case EnsureGateway(revision=revision, args=args):
            await world.ensure_gateway(revision, args)
        case StartReplica(id=id_, revision=revision, args=engine_args, cpu_millicores=millicores):
            await world.start_replica(id_, revision, engine_args, millicores)
        case Route(table=table):
            gateway = await world.gateway()
            # A gateway that is not there yet gets its table in a later turn.
            if gateway is not None and gateway.admin_url is not None:
                await admin.route(gateway.admin_url, table)
        case SetLimits(id=id_, limits=limits, version=version, lease_seconds=lease_seconds, reason=reason):
            # Likewise an engine that has gone since it was observed.
            if (url := admin_urls.get(id_)) is not None:
                await admin.set_limits(url, limits, version=version, lease_seconds=lease_seconds, reason=reason)
        case DrainReplica(id=id_, timeout_seconds=timeout_s):
            await world.drain_replica(id_, timeout_s)
        case StopReplica(id=id_):
            await world.stop_replica(id_)
