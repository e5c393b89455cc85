"""Probes tell the truth, doors are closed by default, and requests keep their ids."""

import asyncio
from typing import Any

import pytest
from scripted_client import ScriptedClient
from serving import Served, serving

from capstan_engine.server.app import OPEN_PATHS

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
CHAT = "/v1/chat/completions"


async def statuses(served: Served) -> dict[str, int]:
    return {path: (await served.http.get(path)).status_code for path in ("/livez", "/readyz", "/ready", "/health")}


async def test_loading_is_alive_and_healthy_but_not_ready(engine: ScriptedClient) -> None:
    async with serving(engine, load=False) as served:
        assert await statuses(served) == {"/livez": 200, "/readyz": 503, "/ready": 503, "/health": 200}
        answer = await served.http.post(CHAT, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        assert int(answer.headers["retry-after"]) > 0
        for path in ("/tokenizer_info", "/tokenize"):
            assert (await served.http.request("POST" if path == "/tokenize" else "GET", path, json={})).status_code in (
                400,
                503,
            )
        assert (await served.http.get("/metrics")).status_code == 200
        assert (await served.http.get("/v1/models")).status_code == 200


async def test_a_silent_engine_is_not_healthy(served: Served, engine: ScriptedClient) -> None:
    assert (await served.http.get("/health")).status_code == 200
    engine.last_heartbeat_age_s = 5.1
    answer = await served.http.get("/health")
    assert answer.status_code == 503
    assert "said nothing for 5.1 s" in answer.json()["error"]["message"]
    assert (await served.http.get("/livez")).status_code == 200


async def test_a_dead_engine_is_neither_healthy_nor_ready(served: Served, engine: ScriptedClient) -> None:
    engine.die("killed by signal 9")
    await served.front.watch()
    assert await statuses(served) == {"/livez": 200, "/readyz": 503, "/ready": 503, "/health": 503}
    answer = await served.http.post(CHAT, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "dead")


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_probes_answer_head(served: Served, path: str) -> None:
    assert (await served.http.head(path)).status_code == 200


async def test_draining_finishes_the_accepted_and_refuses_the_new(served: Served, engine: ScriptedClient) -> None:
    engine.gate.clear()
    accepted = asyncio.create_task(served.http.post(CHAT, json=BODY))
    await asyncio.wait_for(engine.reading.wait(), 10)
    for _ in range(2):  # asking twice is asking once
        answer = await served.admin.post("/admin/drain")
        assert answer.json() == {"draining": True, "open_requests": 1}
    assert (await statuses(served))["/readyz"] == 503
    assert (await statuses(served))["/health"] == 200
    refused = await asyncio.wait_for(served.http.post(CHAT, json=BODY), 10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) > 0
    engine.gate.set()
    assert (await accepted).status_code == 200
    assert await served.front.lifecycle.drained()


async def test_drain_waits_no_longer_than_allowed(served: Served, engine: ScriptedClient) -> None:
    engine.gate.clear()
    accepted = asyncio.create_task(served.http.post(CHAT, json=BODY))
    await asyncio.wait_for(engine.reading.wait(), 10)
    await served.admin.post("/admin/drain", json={"timeout_seconds": 0})
    assert not await served.front.lifecycle.drained()
    engine.gate.set()
    await accepted


@pytest.mark.parametrize("body", [{"timeout_seconds": -1}, {"timeout_seconds": "1"}, {"seconds": 1}, []])
async def test_senseless_drain_is_refused(served: Served, body: Any) -> None:
    assert (await served.admin.post("/admin/drain", json=body)).status_code == 400
    assert (await served.http.get("/readyz")).status_code == 200


async def test_with_a_key_every_route_but_the_probes_is_closed(engine: ScriptedClient) -> None:
    async with serving(engine, api_key="sesame") as served:
        document = (await served.http.get("/openapi.json", headers={"authorization": "Bearer sesame"})).json()
        paths = [*document["paths"], "/openapi.json", "/nope", "//v1/models", "/v1/models/", "/LIVEZ", "/metrics/"]
        for path in paths:
            for method in ("GET", "POST", "HEAD", "OPTIONS"):
                for headers in (
                    {},
                    {"authorization": "Bearer wrong"},
                    {"authorization": "sesame"},
                    {"host": "a/livez?"},
                ):
                    answer = await served.http.request(method, path.replace("{model_id}", "tiny"), headers=headers)
                    assert (answer.status_code == 401) == (path not in OPEN_PATHS), (method, path, headers)
        good = await served.http.get("/v1/models", headers={"authorization": "bearer sesame"})
        assert good.status_code == 200
        refused = await served.http.get("/v1/models")
        assert refused.json()["error"]["type"] == "authentication_error"
        assert refused.headers["www-authenticate"] == "Bearer"


async def test_the_admin_port_needs_its_own_token(engine: ScriptedClient) -> None:
    async with serving(engine, api_key="sesame") as served:
        for headers in ({"authorization": ""}, {"authorization": "Bearer sesame"}):
            for path in ("/admin/limits", "/admin/state", "/admin/steps", "/nope"):
                assert (await served.admin.get(path, headers=headers)).status_code == 401
        assert (await served.admin.get("/livez", headers={"authorization": ""})).status_code == 200


async def test_without_a_token_the_admin_port_is_locked_and_says_why(engine: ScriptedClient) -> None:
    async with serving(engine, admin_token=None) as served:
        answer = await served.admin.get("/admin/state", headers={"authorization": "Bearer "})
        assert answer.status_code == 401
        assert "CAPSTAN_ADMIN_TOKEN" in answer.json()["error"]["message"]
        assert (await served.admin.get("/readyz")).status_code == 200


async def test_a_harmless_request_id_is_echoed_and_any_other_replaced(served: Served) -> None:
    assert (await served.http.get("/health", headers={"x-request-id": "abc-1.2"})).headers["x-request-id"] == "abc-1.2"
    for bad in ("", "a b", "x" * 129, "<script>"):
        replaced = (await served.http.get("/nope", headers={"x-request-id": bad})).headers["x-request-id"]
        assert len(replaced) == 32
        assert replaced != bad


async def test_a_whole_answer_carries_the_latencies_that_its_client_cannot_see(served: Served) -> None:
    answer = await served.http.post(CHAT, json=BODY)
    assert float(answer.headers["x-capstan-ttft-ms"]) > 0
    assert float(answer.headers["x-capstan-tpot-ms"]) >= 0


async def test_tokens_there_and_back(served: Served) -> None:
    told = (await served.http.post("/tokenize", json={"prompt": "naïve 日本", "return_token_strs": True})).json()
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == 256
    back = (await served.http.post("/detokenize", json={"tokens": told["tokens"][1:]})).json()
    assert back == {"prompt": "naïve 日本"}
    chat = (await served.http.post("/tokenize", json=BODY)).json()
    plain = (await served.http.post("/tokenize", json=BODY | {"add_generation_prompt": False})).json()
    assert chat["tokens"][:-1] == plain["tokens"]
    assert (await served.http.post("/detokenize", json={"tokens": [4096]})).json()["error"]["param"] == "tokens"
    info = (await served.http.get("/tokenizer_info")).json()
    assert info["eos_token"] == "<|end|>"
    assert "messages" in info["chat_template"]
