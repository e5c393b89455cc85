"""Clients that stream without end and never try again: what a rollout, a drain or an outage must not hurt."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

TOKENS = 24


@dataclass
class Streams:
    """What became of every request: `whole` had all its tokens, a finish reason and the end mark; all else is named."""

    url: str
    model: str
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def whole(self) -> int:
        return self.outcomes["whole"]

    @property
    def hurt(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != "whole"}

    async def client(self, http: aiohttp.ClientSession, stop: asyncio.Event, number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            try:
                outcome = await self._request(http, f"client {number} turn {turn}: tell me something")
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome = f"lost: {type(error).__name__}"
            self.outcomes[outcome] += 1

    async def _request(self, http: aiohttp.ClientSession, prompt: str) -> str:
        body = {"model": self.model, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        tokens, finish, ended = 0, None, False
        async with http.post(f"{self.url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                return f"refused: {answer.status}"
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    ended = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return "truncated: error event"
                for choice in event["choices"]:
                    tokens += 1
                    finish = choice["finish_reason"] or finish
        return "whole" if ended and finish == "length" and tokens > 0 else "truncated: no end"


@asynccontextmanager
async def streaming(url: str, model: str, clients: int) -> AsyncIterator[Streams]:
    """Keep `clients` requests open until the block ends, then let the open ones finish."""
    streams, stop = Streams(url, model), asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        running = [asyncio.create_task(streams.client(http, stop, number)) for number in range(clients)]
        try:
            yield streams
        finally:
            stop.set()
            await asyncio.gather(*running)
