"""Carries out a decision's actions, in their order.

One that fails does not stop the others: everything is level-triggered, so the next turn sees what is missing and asks
for it again. Those of one kind are carried out at the same time: limits all of them, because they protect what is being
served; others a few, so that a large resource does not stand in the way of small ones.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from itertools import groupby
from typing import Any, Final

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
from capstan_operator.errors import AdminError, CapstanOperatorError, Gone
from capstan_operator.world.base import World

_AT_A_TIME: Final = 8


async def apply(actions: Sequence[Action], world: World, admin: AdminClient) -> tuple[str, ...]:
    """Returns what went wrong, one clause each; empty when all was done. Raises `Gone`."""
    tells = any(isinstance(action, SetLimits) for action in actions)
    admin_urls = {facts.id: facts.admin_url for facts in await world.replicas()} if tells else {}

    async def attempt(action: Action, room: asyncio.Semaphore) -> str:
        async with room:
            try:
                await _carry_out(action, world, admin, admin_urls)
            except Gone:
                raise
            except CapstanOperatorError as error:
                return f"{action.kind}: {error}"
        return ""

    outcomes: list[str] = []
    for kind, run in groupby(actions, key=type):
        alike = list(run)
        room = asyncio.Semaphore(len(alike) if kind is SetLimits else _AT_A_TIME)
        if kind is StartReplica:
            # The first brings what all of them share, and whatever refuses it need not be asked for the others.
            outcomes.append(await attempt(alike.pop(0), room))
        outcomes += await asyncio.gather(*(attempt(action, room) for action in alike))
    return tuple(filter(None, outcomes))


async def _carry_out(action: Action, world: World, admin: AdminClient, admin_urls: dict[str, str | None]) -> None:
    match action:
        case EnsureGateway(revision=revision, args=args):
            await world.ensure_gateway(revision, args)
        case StartReplica(id=id_, revision=revision, args=engine_args, cpu_millicores=millicores):
            await world.start_replica(id_, revision, engine_args, millicores)
        case Route(gateways=ids, table=table):
            # A gateway that has gone since needs no table, and one that is not there yet gets it in a later turn.
            urls = [g.admin_url for g in await world.gateways() if g.id in ids and g.admin_url is not None]
            await _all(admin.route(url, table) for url in urls)
        case SetLimits(id=id_, limits=limits, version=version, lease_seconds=lease_seconds, reason=reason):
            # Likewise an engine that has gone since it was observed.
            if (url := admin_urls.get(id_)) is not None:
                await admin.set_limits(url, limits, version=version, lease_seconds=lease_seconds, reason=reason)
        case DrainReplica(id=id_, timeout_seconds=timeout_s):
            await world.drain_replica(id_, timeout_s)
        case StopReplica(id=id_):
            await world.stop_replica(id_)


async def _all(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Make all calls at the same time; one that fails keeps none of the others away."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for failure in failures:
        if not isinstance(failure, CapstanOperatorError):
            raise failure
    if failures:
        raise AdminError("; ".join(str(failure) for failure in failures))
