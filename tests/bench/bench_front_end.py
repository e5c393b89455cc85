"""CPU time of the front end per streamed token, without an engine behind it.

    python tests/bench/bench_front_end.py [--streams 1 16 64] [--tokens 256] [--rounds 3]

An engine that only counts feeds real chat streams: detokenizing, metrics, JSON, events. Two ways out: straight into a
`send` that drops everything, and over a loopback connection to a reader in another process, whose time does not count.
The figure is the process's CPU time divided by tokens, less what the counting engine takes by itself; the median of the
rounds.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from starlette.types import ASGIApp, Message

from capstan_engine.messages import FinishReason, Output, Submit
from capstan_engine.server.app import create_app
from capstan_engine.server.front_end import FrontEnd
from capstan_engine.server.listener import HttpServer, bound, port_of

# The scripted engine of the server's tests stands in their folder.
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from scripted_client import ScriptedClient
from serving import make_args

CHAT = "/v1/chat/completions"
READER = """
import asyncio, sys
async def one(port, body):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: {len(body)}\\r\\n\\r\\n"
    writer.write(head.encode() + body)
    tail = b""
    while b"[DONE]" not in tail:
        tail = tail[-16:] + await reader.read(65536)
    writer.close()
async def main(port, streams, body):
    await asyncio.gather(*(one(port, body) for _ in range(streams)))
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()))
"""


class CountingClient(ScriptedClient):
    """One ordinary word token after the other, as a step loop would give them: each stream one token per round."""

    async def generate(self, submit: Submit) -> AsyncGenerator[Output, None]:
        self.submitted = [submit]
        last = submit.params.max_tokens - 1
        for position in range(last + 1):
            await asyncio.sleep(0)
            yield Output(
                submit.request_id,
                token_ids=[300 + position % 3000],
                finish_reason=FinishReason.LENGTH if position == last else None,
                first_scheduled_time=time.monotonic() if position == 0 else None,
            )


def request_body(num_tokens: int) -> bytes:
    message = {"role": "user", "content": "x"}
    return json.dumps({"messages": [message], "max_tokens": num_tokens, "ignore_eos": True, "stream": True}).encode()


async def feeding(client: CountingClient, streams: int) -> None:
    """What the counting engine costs by itself."""
    submit = client.submitted[-1]

    async def drain() -> None:
        async for _ in client.generate(submit):
            pass

    await asyncio.gather(*(drain() for _ in range(streams)))


async def direct(app: ASGIApp, streams: int, body: bytes) -> None:
    async def one() -> None:
        received = False

        async def receive() -> Message:
            nonlocal received
            if received:
                await asyncio.Event().wait()
            received = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            pass

        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [],
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
        }
        await app(scope, receive, send)

    await asyncio.gather(*(one() for _ in range(streams)))


async def loopback(port: int, streams: int, body: bytes) -> None:
    reader = await asyncio.create_subprocess_exec(sys.executable, "-c", READER, str(port), str(streams), body.decode())
    assert await reader.wait() == 0


async def cpu_us(work: Callable[[], Awaitable[None]], num_tokens: int, rounds: int) -> float:
    """Median CPU microseconds of this process per token."""
    figures = []
    for _ in range(rounds + 1):
        before = time.process_time()
        await work()
        figures.append((time.process_time() - before) * 1e6 / num_tokens)
    return statistics.median(figures[1:])  # the first round warms up


async def main(options: argparse.Namespace) -> None:
    client = CountingClient(lambda _: [], max_model_len=8192)
    front = FrontEnd(make_args(max_model_len=8192), client)
    app = create_app(front)
    listener = bound("127.0.0.1", 0, "port")
    server = HttpServer(app, listener)
    await server.open()
    await front.load()
    print(f"{'streams':>8} {'direct µs/token':>16} {'loopback µs/token':>18} {'tokens/s at one core':>21}")
    for streams in options.streams:
        body = request_body(options.tokens)
        total = streams * options.tokens
        await direct(app, 1, body)
        fed = await cpu_us(lambda n=streams: feeding(client, n), total, options.rounds)
        straight = await cpu_us(lambda n=streams, b=body: direct(app, n, b), total, options.rounds) - fed
        wired = await cpu_us(lambda n=streams, b=body: loopback(port_of(listener), n, b), total, options.rounds) - fed
        print(f"{streams:>8} {straight:>16.1f} {wired:>18.1f} {1e6 / wired:>21.0f}")
    await server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    uvloop.run(main(parser.parse_args()))
