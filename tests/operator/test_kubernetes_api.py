"""The client of the API server: what it sends, what it refuses to send, and what it makes of answers and silence."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from capstan_operator.errors import (
    ApiConflict,
    ApiError,
    ApiForbidden,
    ApiInvalid,
    ApiNotFound,
    ApiUnavailable,
    NotLeader,
    WorldError,
)
from capstan_operator.world.kubernetes import connection
from capstan_operator.world.kubernetes.access import CONFIG_MAPS, LEASES, POD_MONITORS, PODS, SECRETS
from capstan_operator.world.kubernetes.api import Call, KubernetesApi
from capstan_operator.world.kubernetes.connection import connect
from fake_kubernetes import FakeKubernetes, refusal

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {"x": 1}}
CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default"}, "data": {}}


@pytest.fixture
async def server() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as server:
        yield server


@pytest.fixture
async def transport(server: FakeKubernetes) -> AsyncIterator[ApiClient]:
    configuration = Configuration(host=server.url)
    configuration.api_key["BearerToken"] = "Bearer secret"
    client = ApiClient(configuration)
    yield client
    await client.close()


@pytest.fixture
def api(transport: ApiClient) -> KubernetesApi:
    return KubernetesApi(transport)


async def test_apply_is_server_side_with_our_field_manager(server: FakeKubernetes, api: KubernetesApi) -> None:
    await api.apply(CONFIG_MAPS, CONFIG)
    (request,) = server.requests
    assert request.verb == "patch"
    assert request.headers["Content-Type"] == "application/apply-patch+yaml"
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.query == {"fieldManager": "capstan-operator", "force": "true"}
    assert request.body == CONFIG


async def test_what_the_table_does_not_list_is_never_sent(server: FakeKubernetes, api: KubernetesApi) -> None:
    with pytest.raises(AssertionError, match="secrets"):
        await api.get(SECRETS, "default", "token")
    with pytest.raises(AssertionError, match="pods"):
        await api.apply(PODS, POD)
    assert server.requests == []


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, ApiInvalid),
        (401, ApiForbidden),
        (403, ApiForbidden),
        (404, ApiNotFound),
        (405, ApiInvalid),
        (409, ApiConflict),
        (410, ApiInvalid),
        (422, ApiInvalid),
        (429, ApiUnavailable),
        (500, ApiUnavailable),
        (503, ApiUnavailable),
        (504, ApiUnavailable),
    ],
)
async def test_each_refusal_has_its_error_with_the_servers_own_words(
    server: FakeKubernetes, api: KubernetesApi, code: int, error: type[ApiError]
) -> None:
    server.faults.append(lambda _: refusal(code, "because I say so"))
    with pytest.raises(error, match=f"create of .*pods answers {code}: because I say so") as raised:
        await api.create(PODS, POD)
    assert raised.value.code == code


async def test_a_pause_that_the_server_asks_for_is_kept(server: FakeKubernetes, transport: ApiClient) -> None:
    now = 0.0
    api = KubernetesApi(transport, clock=lambda: now)
    server.faults.append(lambda _: refusal(429, "slow down", **{"Retry-After": "7"}))
    with pytest.raises(ApiUnavailable) as raised:
        await api.get(PODS, "default", "p")
    assert raised.value.retry_after_s == 7
    server.faults.clear()
    now = 6.0
    with pytest.raises(ApiUnavailable, match="pause"):
        await api.get(PODS, "default", "p")
    assert len(server.requests) == 1
    now = 7.1
    with pytest.raises(ApiNotFound):
        await api.get(PODS, "default", "p")


async def test_silence_ends_in_an_error_that_says_how_long_was_waited(
    server: FakeKubernetes, transport: ApiClient
) -> None:
    server.hang = asyncio.Event()
    calls: list[Call] = []
    api = KubernetesApi(transport, request_timeout_s=0.1, on_call=calls.append)
    with pytest.raises(ApiUnavailable, match=r"no answer within 0\.1 s"):
        await api.create(PODS, POD)
    assert [(call.verb, call.resource, call.code) for call in calls] == [("create", "pods", 0)]


async def test_after_silence_most_requests_fail_at_once_and_an_answer_ends_that(
    server: FakeKubernetes, transport: ApiClient
) -> None:
    now = 0.0
    server.put("pods", POD)
    api = KubernetesApi(transport, request_timeout_s=0.1, longest_pause_s=4, clock=lambda: now)
    server.hang = asyncio.Event()
    began_at = []
    for _ in range(60):
        before = len(server.requests)
        with pytest.raises(ApiUnavailable) as raised:
            await api.get(PODS, "default", "p")
        if "no answer" in str(raised.value):
            began_at.append(now)
        assert len(server.requests) == before
        now += 0.5
    assert began_at[:5] == [0, 1, 3, 7, 11]
    server.hang.set()
    now += 4
    await api.get(PODS, "default", "p")
    server.hang = None
    await api.get(PODS, "default", "p")


async def test_nobody_waits_for_ever_behind_requests_that_hang(server: FakeKubernetes, transport: ApiClient) -> None:
    held = asyncio.Event()

    async def fence() -> None:
        await held.wait()

    api = KubernetesApi(transport, max_concurrent=1, request_timeout_s=0.1, fence=fence)
    first = asyncio.create_task(api.create(PODS, POD))
    with pytest.raises(ApiUnavailable, match="too many requests wait"):
        await asyncio.gather(api.get(PODS, "default", "p"))
    held.set()
    await first
    await api.get(PODS, "default", "p")


@pytest.mark.parametrize("body", [b"<html>", b"[1, 2]", b"\xff", b""])
async def test_an_answer_that_is_no_object_is_not_believed(
    server: FakeKubernetes, api: KubernetesApi, body: bytes
) -> None:
    server.faults.append(lambda _: web.Response(body=body))
    with pytest.raises(ApiUnavailable):
        await api.get(PODS, "default", "p")


async def test_nobody_listening_is_unavailable() -> None:
    client = ApiClient(Configuration(host="http://127.0.0.1:1"))
    with pytest.raises(ApiUnavailable, match="cannot be reached"):
        await KubernetesApi(client).get(PODS, "default", "p")
    await client.close()


async def test_a_delete_names_the_uid_and_spares_a_namesake(server: FakeKubernetes, api: KubernetesApi) -> None:
    live = server.put("pods", POD)
    await api.delete(PODS, "default", "p", uid="another", grace_period_s=5)
    assert "deletionTimestamp" not in server.find("pods", "p")["metadata"]
    await api.delete(PODS, "default", "p", uid=live["metadata"]["uid"], grace_period_s=5)
    assert server.find("pods", "p")["metadata"]["deletionGracePeriodSeconds"] == 5
    assert server.requests[-1].body["preconditions"] == {"uid": live["metadata"]["uid"]}
    await api.delete(PODS, "default", "never-there", uid="x")


async def test_every_write_asks_the_fence_and_a_read_does_not(
    server: FakeKubernetes, transport: ApiClient, api: KubernetesApi
) -> None:
    async def shut() -> None:
        raise NotLeader("the lease is held by another")

    server.put("pods", POD)
    fenced = KubernetesApi(transport, fence=shut)
    await fenced.get(PODS, "default", "p")
    lease = {"metadata": {"name": "l", "namespace": "default"}}
    for write in (
        fenced.create(PODS, POD),
        fenced.apply(CONFIG_MAPS, CONFIG),
        fenced.replace(LEASES, lease),
        fenced.delete(PODS, "default", "p", uid="x"),
    ):
        with pytest.raises(NotLeader):
            await write
    assert server.writes == []
    # The lease itself is written by way of the unfenced one.
    await api.create(LEASES, lease)
    assert len(server.writes) == 1


async def test_requests_at_the_same_time_are_bounded(server: FakeKubernetes, transport: ApiClient) -> None:
    server.hang = asyncio.Event()
    asked: list[int] = []
    third = asyncio.Event()

    async def fence() -> None:
        asked.append(1)
        if len(asked) == 3:
            third.set()

    fenced = KubernetesApi(transport, max_concurrent=3, fence=fence)
    tasks = [asyncio.create_task(fenced.create(PODS, POD)) for _ in range(9)]
    await third.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(asked) == 3
    server.hang.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(asked) == 9


async def test_only_metadata_is_listed(server: FakeKubernetes, api: KubernetesApi) -> None:
    server.put("pods", {**POD, "metadata": {"name": "a", "labels": {"x": "1"}}})
    server.put("pods", {**POD, "metadata": {"name": "b", "namespace": "other", "labels": {"x": "1"}}})
    assert [m["name"] for m in await api.list_metadata(PODS, None, "x=1")] == ["a", "b"]
    assert [m["name"] for m in await api.list_metadata(PODS, "other", "x")] == ["b"]
    assert "PartialObjectMetadataList" in server.requests[0].headers["Accept"]


async def test_kinds_that_are_not_installed_are_found_out(server: FakeKubernetes, api: KubernetesApi) -> None:
    assert await api.serves(POD_MONITORS)
    server.kinds = frozenset()
    assert not await api.serves(POD_MONITORS)
    server.kinds = frozenset({"podmonitors"})
    server.faults.append(lambda _: refusal(404, "no such group"))
    assert not await api.serves(POD_MONITORS)


async def test_without_credentials_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(WorldError, match="KUBECONFIG is not set"):
        await connect()
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    with pytest.raises(WorldError, match="/nowhere/kubeconfig cannot be used"):
        await connect()


async def test_a_token_is_read_anew_before_it_expires(
    server: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kubeconfig"

    def issue(token: str) -> None:
        cluster, user = {"server": server.url}, {"token": token}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        }
        path.write_text(json.dumps(config))

    issue("first")
    client = await connect(path)
    api = KubernetesApi(client)
    server.put("pods", POD)
    await api.get(PODS, "default", "p")
    issue("second")
    await api.get(PODS, "default", "p")
    monkeypatch.setattr(connection, "TOKEN_LASTS_S", 0.0)
    await api.get(PODS, "default", "p")
    assert [r.headers["Authorization"] for r in server.requests] == ["Bearer first", "Bearer first", "Bearer second"]
    # The last one as whoever rewrites a file leaves it for a moment.
    for broken in ("{}", ""):
        path.write_text(broken)
        with pytest.raises(ApiForbidden, match="credentials cannot be renewed"):
            await api.get(PODS, "default", "p")
    await client.close()


@pytest.mark.parametrize("content", ["a: [1,", "just text", "clusters: 3\ncurrent-context: x"])
async def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    with pytest.raises(WorldError, match=f"no way to the API server: {path} cannot be used"):
        await connect(path)
