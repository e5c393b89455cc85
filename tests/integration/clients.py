"""Clients that take nothing on trust: they count tokens themselves and tell every way in which an answer can end."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

HEADER_REPLICA = "x-capstan-replica"


@dataclass
class Answer:
    """What has arrived of one answer, while it arrives."""

    wanted: int
    stream: bool
    status: int = 0
    replica: str = ""
    num_tokens: int = 0
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    """A whole body, or a stream with its end marker."""
    dropped: bool = False
    """The connection was lost."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first token."""

    @property
    def is_complete(self) -> bool:
        """Everything that was asked for has come, and was said to be everything."""
        whole = self.done and self.finish_reason == "length" and self.num_tokens == self.wanted
        return self.status == 200 and whole and self.error is None

    @property
    def is_honest_failure(self) -> bool:
        """Cut short, and said to be: an error event, the end marker, and no finish reason."""
        return self.done and self.error is not None and bool(self.error["message"]) and self.finish_reason is None

    @property
    def is_refusal(self) -> bool:
        """Not accepted, with a reason."""
        return self.status in (429, 503) and self.error is not None


class Client:
    """Speaks to one endpoint."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str, model: str) -> None:
        self._session = session
        self._endpoint = endpoint
        self._model = model

    def begin(self, number: int, max_tokens: int, *, stream: bool) -> tuple[Answer, asyncio.Task[None]]:
        """Ask; the answer fills up until the task is done. Different numbers share no prefix."""
        answer = Answer(max_tokens, stream)
        return answer, asyncio.create_task(self._fill(answer, f"{number}: the"))

    async def ask(self, number: int, max_tokens: int, *, stream: bool = True) -> Answer:
        """The answer, once it has ended in whichever way."""
        answer, task = self.begin(number, max_tokens, stream=stream)
        await task
        return answer

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric over all series that bear `labels`."""
        async with self._session.get(f"{self._endpoint}/metrics") as response:
            page = await response.text()
        series = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for key, value in series if all(text in key for text in wanted))

    async def _fill(self, answer: Answer, prompt: str) -> None:
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": answer.wanted,
            "ignore_eos": True,
            "stream": answer.stream,
            "return_token_ids": True,
        }
        try:
            async with self._session.post(f"{self._endpoint}/v1/completions", json=body) as response:
                answer.status = response.status
                answer.replica = response.headers.get(HEADER_REPLICA, "")
                if response.content_type == "text/event-stream":
                    await _read_events(answer, response.content)
                else:
                    _take(answer, await response.json())
                    answer.done = True
        except (aiohttp.ClientError, ConnectionError):
            answer.dropped = True


async def _read_events(answer: Answer, lines: AsyncIterator[bytes]) -> None:
    async for line in lines:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            answer.done = True
        elif data:
            assert not answer.done, "nothing may follow the end marker"
            _take(answer, json.loads(data))


def _take(answer: Answer, payload: dict[str, Any]) -> None:
    if "error" in payload:
        answer.error = payload["error"]
        return
    for choice in payload["choices"]:
        answer.num_tokens += len(choice.get("token_ids") or ())
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
    if answer.num_tokens:
        answer.begun.set()


@asynccontextmanager
async def client(endpoint: str, model: str, timeout_s: float = 60) -> AsyncIterator[Client]:
    """A client without a bound on connections; no answer may take longer than `timeout_s`."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
        yield Client(session, endpoint, model)


def told(answers: Iterable[Answer]) -> str:
    """The answers that a failed test is about."""
    return "\n".join(map(str, answers))
