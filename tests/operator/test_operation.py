"""One running operator, whole: from its first look at the API server to the lease that it gives back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from kubernetes_house import READY, resource

from capstan_operator.decide import render
from fake_kubernetes import FakeKubernetes
from running_operator import NAMESPACE, running


@pytest.fixture
async def server() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as made:
        yield made


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def is_made(server: FakeKubernetes, resource: str, name: str) -> bool:
    return (resource, "default", name) in server.objects


async def page(url: str, path: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{url}{path}") as answer:
        return await answer.text()


async def is_told(url: str, text: str) -> bool:
    return text in await page(url, "/metrics")


async def test_what_was_declared_before_it_came_is_looked_after(server: FakeKubernetes) -> None:
    server.put("inferencedeployments", resource().document())
    async with running(server) as url:
        await eventually(lambda: is_made(server, "pods", f"llama-{render.revision(resource())}-0"))
        await eventually(lambda: is_told(url, 'capstan_operator_turns_total{outcome="ok"}'))
        assert server.find("inferencedeployments", "llama")["status"]["desiredReplicas"] == 1
        assert await page(url, "/livez") == "ok"
        assert await is_told(url, "capstan_operator_is_leader 1.0")


async def test_what_is_declared_and_removed_while_it_runs_is_noticed(server: FakeKubernetes) -> None:
    async with running(server) as url:
        server.put("inferencedeployments", resource().document())
        await eventually(lambda: is_told(url, 'deployment="llama"'))
        server.remove("inferencedeployments", "llama")
        async with asyncio.timeout(30):
            while await is_told(url, 'deployment="llama"'):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)


async def test_a_new_resource_costs_one_request_for_each_object_and_few_for_its_status(server: FakeKubernetes) -> None:
    server.on_event = lambda kind, manifest, _: kubelet(server, kind, manifest)
    async with running(server):
        server.requests.clear()
        declared = resource(scaling={"mode": "Manual", "replicas": 3})
        server.put("inferencedeployments", declared.document())
        await eventually(lambda: has_ready(server, 3))
        # The status is written before a turn acts, and the budget only counts pods that are there.
        await eventually(lambda: is_made(server, "poddisruptionbudgets", "llama"))
        # Neither what concerns all resources: the lease, and which kinds there are.
        asked = [r for r in server.requests if r.verb != "watch" and r.resource not in ("leases", "")]
        made = [kind for kind, _, _ in server.objects if kind not in ("inferencedeployments", "leases")]
        told = [r for r in asked if r.resource == "inferencedeployments/status"]
        assert sorted(r.resource for r in asked if r not in told) == sorted(made)
        assert len(made) == 14
        assert len(told) <= 3


async def test_what_was_never_understood_is_told_in_its_status_and_among_the_series(server: FakeKubernetes) -> None:
    declared = resource().document()
    server.put("inferencedeployments", {**declared, "spec": {**declared["spec"], "slos": []}})
    told = 'capstan_condition{deployment="llama",namespace="default",status="False",type="ConfigurationValid"} 1.0'
    async with running(server) as url:
        await eventually(lambda: is_told(url, told))
        await eventually(lambda: has_condition(server, "InvalidSpec"))
        server.put("inferencedeployments", resource(scaling={"maxReplicas": 2}).document())
        await eventually(lambda: is_told(url, told.replace("False", "True")))


async def has_condition(server: FakeKubernetes, reason: str) -> bool:
    status = server.find("inferencedeployments", "llama").get("status", {})
    return reason in [condition["reason"] for condition in status.get("conditions", ())]


async def test_it_writes_only_under_its_lease_and_gives_it_back_at_the_end(server: FakeKubernetes) -> None:
    server.put("inferencedeployments", resource().document())
    async with running(server):
        await eventually(lambda: is_made(server, "services", "llama"))
        assert server.writes[0].resource == "leases"
        assert holder(server) == "operator-0"
    assert holder(server) == ""
    assert server.writes[-1].resource == "leases"


def kubelet(server: FakeKubernetes, kind: str, manifest: dict[str, Any]) -> None:
    """Has a pod ready as soon as it is seen."""
    name = manifest["metadata"]["name"]
    if kind == "pods" and "conditions" not in manifest.get("status", {}):
        asyncio.get_running_loop().call_soon(lambda: server.change("pods", name, status={"conditions": READY}))


async def has_ready(server: FakeKubernetes, num: int) -> bool:
    status = server.find("inferencedeployments", "llama").get("status", {})
    return bool(status.get("readyReplicas") == num)


def holder(server: FakeKubernetes) -> str:
    spec = server.find("leases", "capstan-operator", NAMESPACE)["spec"]
    return str(spec["holderIdentity"])
