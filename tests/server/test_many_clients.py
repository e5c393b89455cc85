"""Crowds of clients against the real scheduler: none is lost, and who leaves takes everything along."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator

import pytest
from serving import Served, serving, until

from capstan_api.limits import Envelope
from capstan_engine.client import InProcessClient
from capstan_engine.engine import Engine
from capstan_engine.scheduler.scheduler import Scheduler
from capstan_engine.scheduler.step import ScheduledRequest
from fakes import FakeRunner

NUM_STREAMS = 1000
NUM_DISCONNECTS = 200
ENVELOPE = Envelope(min_sequences=1, max_sequences=64, min_batched_tokens=64, max_batched_tokens=512)


class QuickRunner(FakeRunner):
    """Tokens at one cost however long the past is, and 5 ms a step: a crowd shall not wait for the fake's hashes."""

    def __init__(self) -> None:
        super().__init__(num_blocks=1024, block_size=16, vocab_size=4096, step_s=0.005)

    def _past(self, request: ScheduledRequest, length: int | None = None) -> int:
        return len(request.output_token_ids)

    def _write(self, request: ScheduledRequest, past: int) -> None:
        pass


@pytest.fixture
async def crowded() -> AsyncIterator[Served]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two ends of every connection live in this process
    runner = QuickRunner()
    scheduler = Scheduler(
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=4096,
        limits=ENVELOPE.top,
        max_queued_requests=2 * NUM_STREAMS,
    )
    client = InProcessClient(Engine(scheduler, runner))
    async with serving(client, network=True, envelope=ENVELOPE, max_model_len=4096) as running:
        yield running


class Asking:
    """A client with nothing between it and the socket, so that a thousand of them cost little."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, served: Served, **fields: object) -> "Asking":
        host, port = served.url.removeprefix("http://").split(":")
        asking = cls(*await asyncio.open_connection(host, int(port)))
        body = json.dumps({"prompt": [5, 6, 7], "ignore_eos": True} | fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        asking._writer.write(head.encode() + body)
        return asking

    async def until(self, mark: bytes) -> bytes:
        return await self._reader.readuntil(mark)

    def leave(self) -> None:
        self._writer.transport.abort()


async def settled(served: Served) -> dict[str, int]:
    """The state once nothing is open; the test's time-out ends the waiting when that never comes."""
    state: dict[str, int] = {}

    async def nothing_open() -> bool:
        state.update((await served.admin.get("/admin/state")).json())
        return not any(state[count] for count in ("open_requests", "open_sequences", "running", "waiting"))

    await until(nothing_open)
    return state


async def test_a_thousand_concurrent_streams_all_end_well(crowded: Served) -> None:
    async def stream(number: int) -> bytes:
        asking = await Asking.open(crowded, max_tokens=6, seed=number, stream=True, return_token_ids=True)
        answer = await asking.until(b"data: [DONE]\n\n")
        asking.leave()
        return answer

    async with asyncio.timeout(80):
        answers = await asyncio.gather(*(stream(number) for number in range(NUM_STREAMS)))
        state = await settled(crowded)
    for answer in answers:
        events = [json.loads(part) for part in answer.split(b"data: ")[1:-1] for part in [part.split(b"\n")[0]]]
        assert sum(len(event["choices"][0].get("token_ids", ())) for event in events) == 6
        assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert state["blocks_held"] == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_clients_that_leave_in_mid_answer_leave_nothing_behind(crowded: Served, stream: bool) -> None:
    async with asyncio.timeout(80):
        everyone = [
            await Asking.open(crowded, max_tokens=4000, n=2, seed=number, stream=stream)
            for number in range(NUM_DISCONNECTS)
        ]
        if stream:
            await asyncio.gather(*(asking.until(b"data: ") for asking in everyone[:20]))
        else:

            async def all_accepted() -> bool:
                return crowded.front.lifecycle.num_open == NUM_DISCONNECTS

            await until(all_accepted)
        for asking in everyone:
            asking.leave()
        state = await settled(crowded)
    assert state["blocks_held"] == 0
    assert crowded.front.client.num_open == 0
    metrics = (await crowded.http.get("/metrics")).text
    assert 'capstan_engine_slo_requests_total{slo_class="interactive"} 0.0' in metrics
