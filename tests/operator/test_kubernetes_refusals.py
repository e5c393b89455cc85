"""An API server that says no, or nothing, or to the wrong operator: how little is asked, and what is still done."""

import asyncio
from dataclasses import replace

import pytest
from aiohttp import web
from kubernetes_house import House, resource

from capstan_operator.errors import ApiForbidden, NotLeader, WorldError
from capstan_operator.world.kubernetes.access import (
    CONFIG_MAPS,
)
from capstan_operator.world.kubernetes.api import KubernetesApi
from capstan_operator.world.kubernetes.world import KubernetesWorld
from fake_kubernetes import Request, refusal


async def test_a_write_without_the_lease_ends_the_turn(house: House) -> None:
    async def shut() -> None:
        raise NotLeader("the lease is held by another")

    fenced = KubernetesApi(house.client, fence=shut, clock=house.clock)
    world = KubernetesWorld(replace(house.cluster, api=fenced), resource())
    with pytest.raises(NotLeader):
        await world.prepare(resource(), frozenset(), 1)
    assert house.server.writes == []


async def test_a_refusal_of_one_object_keeps_no_other_away(house: House) -> None:
    def no_monitors(request: Request) -> web.Response | None:
        return refusal(403, "podmonitors is forbidden") if request.resource == "podmonitors" else None

    await house.start()
    house.server.faults.append(no_monitors)
    with pytest.raises(WorldError, match="podmonitors is forbidden"):
        await house.world.prepare(resource(), frozenset(), 1)
    assert house.server.find("services", "llama")
    assert house.server.find("poddisruptionbudgets", "llama")


async def test_what_is_refused_is_not_asked_for_at_every_turn(house: House) -> None:
    house.server.faults.append(lambda r: refusal(403, "exceeded quota") if r.verb == "create" else None)
    for _ in range(120):
        with pytest.raises(WorldError, match="exceeded quota"):
            await house.start()
        house.clock.now += 1
    assert 10 <= len(house.server.writes) <= 16
    house.server.faults.clear()
    house.clock.now += 30
    await house.start()
    assert len(await house.world.replicas()) == 1


async def test_an_api_server_that_is_away_is_not_asked_for_one_thing_after_the_other(house: House) -> None:
    house.server.faults.append(lambda _: refusal(503, "no leader in etcd"))
    with pytest.raises(WorldError, match="no leader in etcd"):
        await house.world.prepare(resource(), frozenset(), 1)
    assert len(house.server.requests) == 1, "of the surroundings, the first"


async def test_a_forbidden_read_is_said_so(house: House) -> None:
    house.server.faults.append(lambda _: refusal(403, "cannot get configmaps"))
    with pytest.raises(ApiForbidden):
        await house.cluster.api.get(CONFIG_MAPS, "default", "x")
    await asyncio.sleep(0)


async def test_a_secret_of_another_type_is_refused_by_name(house: House) -> None:
    def immutable(request: Request) -> web.Response | None:
        return refusal(422, "type: field is immutable") if request.resource == "secrets" else None

    house.server.faults.append(immutable)
    with pytest.raises(WorldError, match="Secret llama-admin cannot be ours"):
        await house.turn()
