"""The gateway of a resource is told its configuration: once, again after it started anew, and never by a new pod."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes_house import READY, House, resource

from capstan_api import names
from capstan_api.engine_args import GatewayArgs
from capstan_operator.decide import render
from capstan_operator.decide.seen.observation import Phase


class FakeGateway:
    """The admin port of a gateway, as far as its configuration goes."""

    def __init__(self) -> None:
        self.args: dict[str, Any] = {}
        self.puts = 0

    async def config(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"].startswith("Bearer ")
        if request.method == "PUT":
            self.puts += 1
            self.args = await request.json()
        return web.json_response(self.args)


@pytest.fixture
async def gateway_pod(house: House, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[int], FakeGateway]]:
    gateway = FakeGateway()
    app = web.Application()
    app.router.add_route("*", "/admin/config", gateway.config)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(names, "PORT_GATEWAY_ADMIN", runner.addresses[0][1])

    def run(restarts: int) -> FakeGateway:
        template = house.server.find("deployments", "llama-gateway")["spec"]["template"]
        status = {
            "podIP": "127.0.0.1",
            "conditions": READY,
            "containerStatuses": [{"name": "gateway", "state": {"running": {}}, "restartCount": restarts}],
        }
        pod = {"metadata": {"name": "llama-gateway-x", "uid": "g", **template["metadata"]}, "status": status}
        house.server.put("pods", pod)
        return gateway

    yield run
    await runner.cleanup()


async def test_a_gateway_is_told_once_and_has_the_revision_then(
    house: House, gateway_pod: Callable[[int], FakeGateway]
) -> None:
    await house.turn()
    gateway = gateway_pod(0)
    revision = render.gateway_revision(resource())
    assert [facts.revision for facts in await house.world.gateways()] == [""]
    await house.turn()
    await house.turn()
    assert gateway.puts == 1
    assert GatewayArgs.model_validate(gateway.args).served_model_names == ("llama",)
    (facts,) = await house.world.gateways()
    assert (facts.revision, facts.phase) == (revision, Phase.READY)


async def test_a_gateway_that_goes_by_it_already_is_asked_and_not_told(
    house: House, gateway_pod: Callable[[int], FakeGateway]
) -> None:
    await house.turn()
    gateway = gateway_pod(0)
    await house.turn()
    again = house.reborn(resource())
    await again.turn()
    assert gateway.puts == 1
    assert [facts.revision for facts in await again.world.gateways()] == [render.gateway_revision(resource())]


async def test_a_gateway_that_started_again_is_asked_again(
    house: House, gateway_pod: Callable[[int], FakeGateway]
) -> None:
    await house.turn()
    gateway_pod(0)
    await house.turn()
    gateway = gateway_pod(1)
    assert [facts.revision for facts in await house.world.gateways()] == [""]
    gateway.args = {}
    await house.turn()
    assert gateway.puts == 2


async def test_a_new_configuration_reaches_the_gateway_without_a_new_template(
    house: House, gateway_pod: Callable[[int], FakeGateway]
) -> None:
    await house.turn()
    gateway = gateway_pod(0)
    await house.turn()
    template = json.dumps(house.server.find("deployments", "llama-gateway")["spec"])
    await house.turn(resource(routing={"hold": {"maxRequests": 7}}))
    assert gateway.args["max_held_requests"] == 7
    assert (
        json.loads(house.server.find("configmaps", "llama-gateway")["data"]["gateway.json"])["max_held_requests"] == 7
    )
    assert json.dumps(house.server.find("deployments", "llama-gateway")["spec"]) == template
