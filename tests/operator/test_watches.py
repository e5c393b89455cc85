"""The watches over a small API server: what they deliver, what they write, and how they know that they hear."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from capstan_operator.watches import WATCHED, Backoff, Hearing, Watches, _key, settings
from capstan_operator.world.kubernetes.access import Resource

RESOURCES = {
    "/api/v1": [("pods", "Pod"), ("namespaces", "Namespace")],
    "/apis/apps/v1": [("deployments", "Deployment")],
    "/apis/capstan.dev/v1alpha1": [("inferencedeployments", "InferenceDeployment")],
    "/apis/apiextensions.k8s.io/v1": [("customresourcedefinitions", "CustomResourceDefinition")],
}


def pod(name: str) -> dict[str, Any]:
    labels = {"capstan.dev/deployment": "a"}
    metadata = {"name": name, "namespace": "default", "uid": name, "labels": labels, "managedFields": [{"x": 1}]}
    return {"metadata": metadata, "status": {}}


class Server:
    """Lists one pod, and streams what it is told to."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.stream: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.pods = [pod("listed")]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path == "/api":
            return web.json_response({"versions": ["v1"]})
        if request.path == "/apis":
            groups = [path.split("/")[2:] for path in RESOURCES if path.startswith("/apis")]
            return web.json_response(
                {
                    "groups": [
                        {"name": g, "versions": [{"version": v}], "preferredVersion": {"version": v}} for g, v in groups
                    ]
                }
            )
        if request.path in RESOURCES:
            return web.json_response(
                {
                    "resources": [
                        {"name": n, "kind": k, "singularName": "", "namespaced": True, "verbs": ["list", "watch"]}
                        for n, k in RESOURCES[request.path]
                    ]
                }
            )
        is_pods = request.path.endswith("/pods")
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": self.pods if is_pods else []})
        response = web.StreamResponse()
        await response.prepare(request)
        while is_pods and (event := await self.stream.get()) is not None:
            await response.write(json.dumps(event).encode() + b"\n")
        if not is_pods:
            await asyncio.Event().wait()
        return response


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"  # type: ignore[attr-defined]
    yield server
    server.stream.put_nowait(None)
    await runner.cleanup()


@pytest.fixture
async def heard(server: Server) -> AsyncIterator[tuple[Watches, "asyncio.Queue[tuple[str, dict[str, Any], bool]]"]]:
    configuration = Configuration(host=server.url)  # type: ignore[attr-defined]
    configuration.api_key["BearerToken"] = "Bearer secret"
    client = ApiClient(configuration)
    queue: asyncio.Queue[tuple[str, dict[str, Any], bool]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(resource: Resource, manifest: dict[str, Any], gone: bool) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, (resource.plural, manifest, gone))

    watches = Watches(client, (), deliver)
    watches.start()
    yield watches, queue
    await watches.stop()
    await client.close()


async def test_what_is_listed_and_what_happens_is_delivered_and_nothing_is_written(
    server: Server, heard: tuple[Watches, Any]
) -> None:
    watches, queue = heard
    async with asyncio.timeout(20):
        plural, manifest, gone = await queue.get()
        assert (plural, manifest["metadata"]["name"], gone) == ("pods", "listed", False)
        assert manifest["kind"] == "Pod"
        assert "managedFields" not in manifest["metadata"]
        server.stream.put_nowait({"type": "ADDED", "object": pod("new")})
        assert (await queue.get())[1]["metadata"]["name"] == "new"
        server.stream.put_nowait({"type": "DELETED", "object": pod("new")})
        assert (await queue.get())[2] is True
        while not watches.hearing.is_complete:  # noqa: ASYNC110 - another thread completes it
            await asyncio.sleep(0.01)
    assert {request.method for request in server.requests} == {"GET"}
    assert {request.headers["Authorization"] for request in server.requests} == {"Bearer secret"}
    watched = [request for request in server.requests if "watch" in request.query]
    selectors = {request.path.rsplit("/", 1)[1]: request.query.get("labelSelector") for request in watched}
    assert selectors == {
        "pods": "capstan.dev/deployment",
        "deployments": "capstan.dev/deployment",
        "inferencedeployments": None,
    }
    assert not [r for r in server.requests if r.path.endswith(("/namespaces", "/customresourcedefinitions"))]


async def test_an_error_inside_a_stream_costs_a_new_start_and_no_process(
    server: Server, heard: tuple[Watches, Any]
) -> None:
    _, queue = heard
    async with asyncio.timeout(30):
        await queue.get()
        server.pods = [pod("after")]
        server.stream.put_nowait({"type": "ERROR", "object": {"code": 500, "message": "etcd is away"}})
        assert (await queue.get())[1]["metadata"]["name"] == "after"


class _Response:
    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.content = self
        self.total_bytes = 0


def test_a_watch_is_as_old_as_its_last_byte() -> None:
    now = 0.0
    hearing = Hearing([("pods", ""), ("deployments", "")], clock=lambda: now)
    pods, deployments = _Response(), _Response()
    now = 10.0
    hearing.answered("/api/v1/pods", {}, _Response())  # type: ignore[arg-type]
    assert hearing.ages() == {"pods": 0.0, "deployments": 10.0}
    assert not hearing.is_complete
    hearing.answered("/api/v1/pods", {"watch": "true"}, pods)  # type: ignore[arg-type]
    hearing.answered("/apis/apps/v1/deployments", {"watch": "true"}, deployments)  # type: ignore[arg-type]
    assert hearing.is_complete
    now = 70.0
    pods.total_bytes = 100
    assert hearing.ages() == {"pods": 0.0, "deployments": 60.0}
    now = 260.0
    assert hearing.ages() == {"pods": 190.0, "deployments": 250.0}


def test_refusals_are_not_hearing() -> None:
    now = 0.0
    hearing = Hearing([("pods", "a"), ("pods", "b")], clock=lambda: now)
    now = 50.0
    hearing.answered("/api/v1/namespaces/a/pods", {"watch": "true"}, _Response())  # type: ignore[arg-type]
    hearing.answered("/api/v1/namespaces/b/pods", {"watch": "true"}, _Response(403))  # type: ignore[arg-type]
    # The oldest namespace counts.
    assert hearing.ages() == {"pods": 50.0}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/api/v1/pods", ("pods", "")),
        ("/api/v1/namespaces/default/pods", ("pods", "default")),
        ("/apis/capstan.dev/v1alpha1/inferencedeployments", ("inferencedeployments", "")),
        ("/apis/apps/v1/namespaces/x/deployments", ("deployments", "x")),
        ("/api/v1/namespaces", ("namespaces", "")),
    ],
)
def test_paths_name_their_watch(path: str, key: tuple[str, str]) -> None:
    assert _key(path) == key


def test_pauses_grow_to_half_a_minute_never_end_and_start_anew_for_each_use() -> None:
    backoff = Backoff()
    pauses = list(itertools.islice(backoff, 200))
    assert all(pause <= 30 for pause in pauses)
    assert min(pauses[10:]) >= 15
    assert next(iter(backoff)) <= 1


def test_kopf_is_set_up_to_write_nothing_and_to_give_up_nothing() -> None:
    chosen = settings()
    assert not hasattr(chosen.networking.error_backoffs, "__len__")
    assert chosen.scanning.disabled
    assert chosen.peering.standalone
    assert not chosen.posting.enabled
    assert (chosen.watching.server_timeout, chosen.watching.inactivity_timeout) == (300, 70)
    assert chosen.queueing.worker_limit is None
    assert len(WATCHED) == 3
