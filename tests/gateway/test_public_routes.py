"""What the gateway answers itself: models, probes, errors in OpenAI's shape, bad input of every kind."""

import asyncio
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan_gateway import listener


async def test_models_lists_served_names_and_aliases(door):
    async with door.session.get(f"{door.url}/v1/models") as response:
        models = (await response.json())["data"]
    assert [(m["id"], m["root"]) for m in models] == [("tiny", "tiny"), ("tiny-batch", "tiny")]
    async with door.session.get(f"{door.url}/v1/models/tiny-batch") as response:
        assert (await response.json())["object"] == "model"
    async with door.session.get(f"{door.url}/v1/models/other") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/metrics", "/version"])
async def test_probes_answer_get_and_head_without_any_replica(door, path):
    for method in ("GET", "HEAD"):
        async with door.session.request(method, door.url + path) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/admin/state", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
async def test_everything_else_is_an_error_in_the_openai_shape(door, method, path, status):
    async with door.session.request(method, door.url + path) as response:
        assert response.status == status
        assert set((await response.json())["error"]) == {"message", "type", "param", "code"}
        assert response.headers["x-request-id"]


async def test_an_unknown_class_is_a_400_that_names_the_classes(door):
    async with door.chat(headers={"x-capstan-slo-class": "gold"}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "x-capstan-slo-class")
    assert "interactive" in error["message"]
    assert "bulk" in error["message"]


@pytest.mark.parametrize("deadline", ["0", "-1", "1.5", "nan", "9" * 30, "٣", "", "1".zfill(12) + "9" * 5000])
async def test_a_deadline_that_is_no_number_of_milliseconds_is_a_400(door, deadline):
    async with door.chat(headers={"x-capstan-deadline-ms": deadline}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "x-capstan-deadline-ms")


async def test_with_a_key_everything_but_probes_and_metrics_asks_for_it(start_gateway, start_replica):
    door = await start_gateway(api_key="secret")
    replica = await start_replica("r1")
    await door.put(replica)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"authorization": "Bearer "}):
        async with door.chat(headers=headers) as response:
            error = (await response.json())["error"]
            assert (response.status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
        async with door.session.get(f"{door.url}/v1/nothing", headers=headers) as response:
            assert response.status == 401
    assert replica.received == []
    async with door.chat(headers={"authorization": "Bearer secret", "host": "[::1"}) as response:
        assert response.status == 200
    assert replica.received[0][1]["authorization"] == "Bearer secret"
    for path in ("/health", "/livez", "/readyz", "/metrics"):
        async with door.session.get(door.url + path) as response:
            assert response.status == 200


async def test_a_body_over_the_limit_is_refused_while_it_comes(door):
    async def unannounced():
        for _ in range(10):
            yield b"x" * (1 << 20)

    for body in (io.BytesIO(b"x" * (9 << 20)), unannounced()):
        async with door.session.post(f"{door.url}/v1/completions", data=body) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (413, "body_too_large")


async def test_a_giant_header_is_refused(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.gateway.port)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * (200 << 10) + b"\r\n\r\n")
    status_line = await reader.readline()
    writer.close()
    assert b" 400 " in status_line


@pytest.mark.parametrize("control", [b"\x01", b"\x1b[31m", b"\x7f"])
async def test_a_control_character_in_a_header_is_a_400_that_names_the_header(door, start_replica, control):
    await door.put(await start_replica("r1"))
    body = b'{"model": "tiny", "prompt": "x"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", door.gateway.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-note: a%sb\r\n" % control)
    writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
    head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b" 400 " in head.splitlines()[0]
    assert json.loads(answer)["error"]["param"] == "x-note"


@pytest.mark.parametrize(
    ("asked", "begun"),
    [(b"", b""), (b"", b"GET /hea"), (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /hea")],
    ids=["nothing", "half", "half after a whole one"],
)
async def test_a_client_that_does_not_finish_asking_is_shown_out(door, monkeypatch, asked, begun):
    monkeypatch.setattr(listener, "_HEAD_TIMEOUT_S", 0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.gateway.port)
    async with asyncio.timeout(10):
        if asked:
            writer.write(asked)
            await reader.readuntil(b"}")
        writer.write(begun)
        assert await reader.read() == b""
    writer.close()


async def test_an_answer_may_take_longer_than_a_head(door, start_replica, scripts, monkeypatch):
    monkeypatch.setattr(listener, "_HEAD_TIMEOUT_S", 0.5)
    replica = await start_replica("r1", scripts.gated)
    await door.put(replica)
    replica.gate.release()
    async with door.chat(stream=True) as response:
        await response.content.readuntil(b"\n\n")
        # A connection that comes now is shown out while this one waits for its second token.
        reader, writer = await asyncio.open_connection("127.0.0.1", door.gateway.port)
        await reader.read()
        writer.close()
        for _ in range(2):
            replica.gate.release()
        assert (await response.read()).endswith(b"[DONE]\n\n")


BAD_BODIES = [
    b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000, b'{"model": NaN}',
    b'{"model": 5}', b'{"model": ["tiny"]}', b'{"prompt": "\\ud800"}', b'{"model": "' + b"x" * 70_000 + b'"}',
    b'{"metadata": [' + b'{"":0},' * 1_000_000 + b"0]}",
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: repr(body[:20]))
async def test_bad_bodies_are_the_clients_error_and_reach_no_replica(door, start_replica, body):
    replica = await start_replica("r1")
    await door.put(replica)
    async with door.session.post(f"{door.url}/v1/completions", data=io.BytesIO(body)) as response:
        text = await response.text()
        assert response.status in (400, 404), text
        assert json.loads(text)["error"]["type"] in ("invalid_request_error", "not_found_error")
    assert replica.received == []
    assert (await door.metrics())["responses_total{outcome=invalid,slo_class=interactive}"] == 1


DEEP = {"tools": b'{"messages": [], "tools": %s}',
        "role": b'{"messages": [{"role": %s}]}',
        "part": b'{"messages": [{"role": "user", "content": [%s]}]}',
        "calls": b'{"messages": [{"role": "assistant", "tool_calls": %s}]}',
        "alias": b'{"model": "tiny-batch", "prompt": "x", "metadata": %s}'}  # fmt: skip


@pytest.mark.parametrize("where", DEEP)
async def test_what_is_nested_too_deeply_to_go_on_makes_no_5xx(door, where):
    body = DEEP[where] % (b"[" * 1000 + b"]" * 1000)
    headers = {"x-capstan-deadline-ms": "1"}
    async with door.session.post(f"{door.url}/v1/chat/completions", data=body, headers=headers) as response:
        # What routing does not look at waits for an engine, which would refuse it.
        assert response.status == (408 if where == "role" else 400)


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "prompt", "role", "content", "text", "tools", "tool_calls", "model", "stream"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents)
async def test_no_json_document_whatever_makes_a_5xx(door, document):
    # Nothing is listening behind the gateway: whatever is accepted ends at its deadline.
    body = json.dumps(document).encode(errors="surrogatepass")
    headers = {"x-capstan-deadline-ms": "1", "content-type": "application/json"}
    async with door.session.post(f"{door.url}/v1/chat/completions", data=body, headers=headers) as response:
        assert response.status in (400, 404, 408)
        assert set((await response.json())["error"]) == {"message", "type", "param", "code"}
