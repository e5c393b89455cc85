"""The rules of server-sent events that clients rely on; each was once broken by somebody."""

import asyncio
import json
from typing import Any

import pytest
from scripted_client import ScriptedClient
from serving import TEXT, Served

from capstan_engine.errors import QueueFull
from capstan_engine.messages import FinishReason

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True}


async def events(served: Served, path: str = CHAT, **changes: object) -> list[Any]:
    """The data of each event of a stream; `[DONE]` as text."""
    answer = await served.http.post(path, json=BODY | changes)
    assert answer.status_code == 200, answer.text
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    found = [block.removeprefix("data: ") for block in blocks]
    return [text if text == "[DONE]" else json.loads(text) for text in found]


async def test_headers_forbid_buffering(served: Served) -> None:
    answer = await served.http.post(CHAT, json=BODY)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-cache"


async def test_stream_begins_with_a_role_and_ends_once(served: Served) -> None:
    *chunks, done = await events(served)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {(c["id"], c["created"], c["model"]) for c in chunks} == {(chunks[0]["id"], chunks[0]["created"], "tiny")}
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == TEXT
    assert all("\ufffd" not in json.dumps(c, ensure_ascii=False) for c in chunks)


async def test_usage_comes_last_and_only_when_asked(served: Served) -> None:
    *chunks, usage, _ = await events(served, stream_options={"include_usage": True})
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert all(chunk["choices"] for chunk in chunks)
    assert all("usage" not in chunk for chunk in (await events(served))[:-1])


async def test_continuous_usage_counts_up(served: Served) -> None:
    *chunks, _ = await events(served, stream_options={"continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


async def test_every_choice_has_its_own_beginning_and_end(served: Served) -> None:
    *chunks, _ = await events(served, n=3)
    for index in range(3):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["stop"]
        assert "".join(c["delta"].get("content", "") for c in own) == TEXT


async def test_held_text_is_released_when_it_is_no_stop_string(served: Served) -> None:
    *chunks, _ = await events(served, stop=["dog.never", "own foxes"])
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == TEXT


async def test_each_token_is_sent_when_it_comes(served_on_network: Served, engine: ScriptedClient) -> None:
    engine.gate.clear()
    engine.hold_after = 2
    async with served_on_network.http.stream("POST", CHAT, json=BODY) as answer:
        lines = answer.aiter_lines()
        got = ""
        while "quick" not in got:  # the third token is held back: this ends only if nothing is buffered
            got += await asyncio.wait_for(anext(lines), 10)
        engine.gate.set()
        rest = [line async for line in lines]
    assert rest[-2] == "data: [DONE]"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_failure_in_mid_stream_is_an_event_and_no_finish(
    served: Served, engine: ScriptedClient, path: str
) -> None:
    engine.end_with, engine.end_after = FinishReason.ERROR, 3
    *chunks, error, done = await events(served, path, prompt="x")
    assert done == "[DONE]"
    assert error["error"]["type"] == "server_error"
    assert error["error"]["code"] == "generation_failed"
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks)


async def test_deadline_in_mid_stream_is_an_event_and_never_length(served: Served, engine: ScriptedClient) -> None:
    engine.end_with, engine.end_after = FinishReason.DEADLINE, 2
    *_, error, _ = await events(served)
    assert error["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [(FinishReason.DEADLINE, 408, "deadline_exceeded"), (FinishReason.ERROR, 500, "generation_failed")],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_failure_before_the_first_token_has_a_status(
    served: Served, engine: ScriptedClient, reason: FinishReason, status: int, code: str, stream: bool
) -> None:
    engine.end_with = reason
    answer = await served.http.post(CHAT, json=BODY | {"stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


async def test_refusal_of_a_stream_is_an_ordinary_error(served: Served, engine: ScriptedClient) -> None:
    engine.refuse = QueueFull("full", retry_after_seconds=3)
    answer = await served.http.post(CHAT, json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_death_of_the_engine_ends_streams_with_an_error(served: Served, engine: ScriptedClient) -> None:
    engine.gate.clear()
    engine.hold_after = 2
    reader = asyncio.create_task(events(served))
    await asyncio.wait_for(engine.reading.wait(), 10)
    engine.die("killed")
    *_, error, done = await reader
    assert error["error"]["code"] == "engine_dead"
    assert done == "[DONE]"
