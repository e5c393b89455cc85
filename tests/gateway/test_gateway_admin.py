"""The operator's side: authenticated, whole-table, idempotent."""

import asyncio
import json

import pytest

ROW = {"id": "a", "url": "http://127.0.0.1:1", "state": "Ready"}


async def test_nothing_is_open_without_the_token(door):
    routes = ["GET /admin/replicas", "PUT /admin/replicas", "GET /admin/state", "POST /admin/drain", "GET /nothing"]
    for method, path in map(str.split, routes):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "admin-token"}):
            async with door.admin(method, path, headers=headers) as response:
                assert (response.status, (await response.json())["error"]["type"]) == (401, "authentication_error")


async def test_without_a_token_in_the_environment_the_port_is_shut(start_gateway):
    door = await start_gateway(admin_token=None)
    async with door.admin("GET", "/admin/state") as response:
        assert response.status == 401
        assert "CAPSTAN_ADMIN_TOKEN" in await response.text()


async def test_putting_the_same_table_twice_changes_nothing(door):
    answers = []
    for _ in range(2):
        async with door.admin("PUT", "/admin/replicas", json={"replicas": [ROW], "version": 3}) as response:
            answers.append((response.status, await response.json()))
    assert answers[0] == answers[1]
    assert answers[0][1] == {"replicas": [{**ROW, "in_table": True, "in_flight": 0, "prefill_tokens": 0}], "version": 3}


async def test_an_older_table_is_refused(door):
    async with door.admin("PUT", "/admin/replicas", json={"replicas": [ROW], "version": 3}):
        pass
    async with door.admin("PUT", "/admin/replicas", json={"replicas": [], "version": 2}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (409, "stale_version")
    assert len((await door.state())["table"]["replicas"]) == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "replicas"),
        ({"replicas": [ROW, ROW]}, "body"),
        ({"replicas": [ROW | {"state": "Dead"}]}, "replicas.0.state"),
        ({"replicas": [ROW | {"url": "ftp://x"}]}, "replicas.0.url"),
        ({"replicas": [ROW | {"url": "http://x/path"}]}, "replicas.0.url"),
        ({"replicas": [ROW | {"id": ""}]}, "replicas.0.id"),
        ({"replicas": [ROW | {"weight": 1}]}, "replicas.0.weight"),
        ({"replicas": [ROW], "version": "3"}, "version"),
    ],
)
async def test_a_malformed_table_names_the_field_and_changes_nothing(door, body, param):
    async with door.admin("PUT", "/admin/replicas", json=body) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, param)
    assert (await door.state())["table"]["replicas"] == []


async def test_a_drained_gateway_finishes_what_it_has_and_refuses_the_rest(door, start_replica, scripts):
    replica = await start_replica("r1", scripts.gated)
    await door.put(replica)
    replica.gate.release()
    async with door.chat(stream=True) as open_stream:
        await open_stream.content.readuntil(b"\n\n")
        for _ in range(2):
            async with door.admin("POST", "/admin/drain") as response:
                assert (response.status, (await response.json())["draining"]) == (200, True)
        async with door.chat() as refused:
            assert (refused.status, (await refused.json())["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
        async with door.session.get(f"{door.url}/readyz") as response:
            assert response.status == 503
        async with door.session.get(f"{door.url}/livez") as response:
            assert response.status == 200
        for _ in range(2):
            replica.gate.release()
        assert (await open_stream.read()).endswith(b"[DONE]\n\n")
    assert await door.gateway.drained()


async def test_what_is_open_at_the_drain_timeout_ends_with_an_error(door, start_replica, scripts):
    replica = await start_replica("r1", scripts.gated)
    await door.put(replica)
    replica.gate.release()
    async with door.chat(stream=True) as open_stream:
        await open_stream.content.readuntil(b"\n\n")
        await door.put()
        held = asyncio.create_task(_status(door))
        await door.until(lambda s: s["held"] == 1)
        async with door.admin("POST", "/admin/drain", json={"timeout_seconds": 0.01}):
            pass
        rest = await open_stream.read()
    assert await held == 503
    assert json.loads(rest.split(b"\n\n")[0][6:])["error"]["code"] == "draining"
    assert rest.endswith(b"data: [DONE]\n\n")
    assert not await door.gateway.drained()
    assert (await door.metrics())["responses_total{outcome=truncated,slo_class=interactive}"] == 1


@pytest.mark.parametrize("timeout", ["-1", "1e400", '"5"', "NaN"])
async def test_a_drain_timeout_that_makes_no_sense_is_refused(door, timeout):
    async with door.admin("POST", "/admin/drain", data=f'{{"timeout_seconds": {timeout}}}') as response:
        assert response.status == 400
    assert not (await door.state())["draining"]


async def _status(door):
    async with door.chat(stream=True) as response:
        return response.status


async def test_nothing_follows_the_end_marker_when_the_drain_ends_before_the_replicas_connection(
    door, start_replica, scripts
):
    replica = await start_replica("r1", scripts.linger)
    await door.put(replica)
    async with door.chat(stream=True) as answer:
        await answer.content.readuntil(b"[DONE]\n\n")
        async with door.admin("POST", "/admin/drain", json={"timeout_seconds": 0.01}):
            pass
        assert await answer.read() == b""
    replica.gate.release()
    metrics = await door.metrics()
    assert metrics["responses_total{outcome=completed,slo_class=interactive}"] == 1
