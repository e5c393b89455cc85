"""Malformed and oversized input ends in a 4xx or a closed connection, and the server lives on."""

import asyncio
import threading
from typing import Any

import pytest
from scripted_client import ScriptedClient
from serving import Served

ROUTES = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]
CHAT = b'{"messages": [{"role": "user", "content": "x"}], "temperature": %s}'


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1" + b"0" * 5000])
async def test_numbers_that_are_none_are_refused(served: Served, number: bytes) -> None:
    answer = await served.http.post("/v1/chat/completions", content=CHAT % number)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"\xff\xfe",
        b"\x00",
        b'{"prompt": "\\ud800"}',
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 100_000,
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=range(12),
)
async def test_bodies_that_make_no_sense_are_refused(served: Served, path: str, body: bytes) -> None:
    answer = await served.http.post(path, content=body)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
async def test_the_content_type_does_not_matter(served: Served, content_type: str) -> None:
    answer = await served.http.post("/v1/chat/completions", content=CHAT % b"1", headers={"content-type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", [*ROUTES])
async def test_a_declared_giant_body_is_refused_unread(served: Served, path: str) -> None:
    answer = await served.http.post(path, content=b"{}", headers={"content-length": str(1 << 40)})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


async def test_an_undeclared_giant_body_is_counted_while_it_arrives(served: Served) -> None:
    num_sent = 0

    async def chunks() -> Any:
        nonlocal num_sent
        for _ in range(64):
            num_sent += 1
            yield b" " * (1 << 20)

    answer = await served.http.post("/v1/chat/completions", content=chunks())
    assert answer.status_code == 413
    assert num_sent <= 10


async def test_many_short_prompts_are_encoded_beside_the_loop_as_a_long_one_is(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, threads = served.front.model.tokenizer, list[threading.Thread]()
    encode = tokenizer.encode

    def noted(text: str, *, add_special_tokens: bool) -> list[int]:
        threads.append(threading.current_thread())
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(tokenizer, "encode", noted)
    for prompt in (["one two three"] * 256, "one two three"):
        answer = await served.http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
        assert answer.status_code == 200
    assert threading.main_thread() not in threads[:256]
    assert threads[256:] == [threading.main_thread()]


async def raw(served: Served, request: bytes) -> bytes:
    """The answer to bytes of our own; b"" when the server just closes."""
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        await writer.drain()
        return await asyncio.wait_for(reader.read(4096), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_malformed_http_closes_the_connection_and_nothing_else(
    served_on_network: Served, engine: ScriptedClient
) -> None:
    for request in (
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-giant: " + b"a" * (4 << 20) + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: y\r\n" % i for i in range(200_000)) + b"\r\n",
        b"GET " + b"/a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00 this is TLS",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 400 + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    ):
        answer = await raw(served_on_network, request)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:100]
    assert (await served_on_network.http.get("/health")).status_code == 200
    assert not engine.submitted


async def test_a_header_that_the_gateway_takes_is_taken_though_it_comes_in_pieces(served_on_network: Served) -> None:
    host, port = served_on_network.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-large: " + b"a" * (63 << 10) + b"\r\n\r\n"
    writer.write(head[: 40 << 10])
    await writer.drain()
    # Another request's answer tells that the server has read the first piece.
    assert (await served_on_network.http.get("/health")).status_code == 200
    writer.write(head[40 << 10 :])
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize(
    "path", ["/", "/nope", "/v1", "/v1/embeddings", "/admin/limits", "/docs", "/v1/../admin/state"]
)
async def test_unknown_routes_are_404_in_the_one_shape(served: Served, path: str) -> None:
    answer = await served.http.post(path, json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"


async def test_wrong_method_is_405_in_the_one_shape(served: Served) -> None:
    answer = await served.http.get("/v1/chat/completions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_no_exception_text_reaches_a_client(
    served: Served, engine: ScriptedClient, caplog: pytest.LogCaptureFixture
) -> None:
    def secret(_: object) -> list[int]:
        raise RuntimeError("secret at 0x7f00 in /srv/private")

    engine.script = secret
    answer = await served.http.post("/v1/chat/completions", content=CHAT % b"1")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


async def test_ignored_fields_are_logged_once_and_prompts_never(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    body = {"messages": [{"role": "user", "content": "very private words"}], "my_novel_field": 1}
    for _ in range(3):
        await served.http.post("/v1/chat/completions", json=body)
    assert caplog.text.count("my_novel_field") == 1
    assert "private" not in caplog.text
    assert "quick brown" not in caplog.text
