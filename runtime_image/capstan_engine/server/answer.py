"""How an answer leaves: as one JSON body or as server-sent events, for as long as the client is there.

Knows pieces and usage; what a chunk looks like is the `Format`'s business. An answer's status is decided by its first
piece: until then a refusal of the engine is still an ordinary HTTP error, after it an event in the stream.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from capstan_api import names
from capstan_engine.errors import CapstanEngineError
from capstan_engine.server.errors import ApiError, unforeseen
from capstan_engine.server.generation import Piece
from capstan_engine.server.requests import StreamOptions

logger = logging.getLogger(__name__)

Json = dict[str, Any]
_DONE: Final = b"data: [DONE]\n\n"
_EVENT_STREAM: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(slots=True)
class Usage:
    """Tokens of one answer. `num_choices` sequences share each prompt, whose cached part counts once."""

    prompt_tokens: int
    num_choices: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    def count(self, piece: Piece) -> None:
        self.completion_tokens += len(piece.token_ids)
        if piece.index % self.num_choices == 0:
            self.cached_tokens += piece.num_cached_tokens

    def json(self) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Format(Protocol):
    """The shapes of one route."""

    def events(self, piece: Piece) -> list[Json]:
        """The chunks of a stream that say what `piece` says."""
        ...

    def usage_event(self) -> Json:
        """A chunk without choices, to carry the usage."""
        ...

    def body(self, choices: Sequence[Piece]) -> Json:
        """The whole answer; each of `choices` is complete."""
        ...


class Connected(Response):
    """Runs `produce(send)` and cancels it when the client goes away. Errors before its first byte become JSON."""

    def __init__(self, produce: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._produce = produce

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._produce(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if work.cancelled():
            return
        match work.exception():
            case None:
                return
            case ApiError() as error:
                await error.response()(scope, receive, send)
            case CapstanEngineError() as error:
                await ApiError.from_engine(error).response()(scope, receive, send)
            case BaseException() as error:
                raise error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer_whole(
    send: Send, pieces: AsyncGenerator[Piece, None], form: Format, usage: Usage, arrival: float
) -> None:
    """Collect all pieces, then send one JSON body, with the latencies that the client could not measure in headers."""
    choices: dict[int, Piece] = {}
    first = last = monotonic()
    async with aclosing(pieces) as all_pieces:
        async for piece in all_pieces:
            usage.count(piece)
            last = monotonic()
            whole = choices.setdefault(piece.index, piece)
            if whole is not piece:
                whole.absorb(piece)
            elif len(choices) == 1:
                first = last
    ordered = [choices[index] for index in sorted(choices)]
    content = orjson.dumps(form.body(ordered) | {"usage": usage.json()})
    headers = {names.HEADER_TTFT_MS: f"{(first - arrival) * 1000:.3f}"}
    longest = max(len(piece.token_ids) for piece in ordered)
    if longest > 1:
        headers[names.HEADER_TPOT_MS] = f"{(last - first) * 1000 / (longest - 1):.3f}"
    await send_json(send, content, headers)


async def send_json(send: Send, content: bytes, headers: dict[str, str]) -> None:
    fields = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    await send({"type": "http.response.body", "body": content, "more_body": False})


async def answer_stream(
    send: Send, pieces: AsyncGenerator[Piece, None], form: Format, usage: Usage, options: StreamOptions | None
) -> None:
    """Send each piece as it comes. Raises only before the first byte; after it, errors are events."""
    include_usage = options is not None and bool(options.include_usage)
    continuous = options is not None and bool(options.continuous_usage_stats)
    started = False
    try:
        async with aclosing(pieces) as all_pieces:
            async for piece in all_pieces:
                usage.count(piece)
                events = form.events(piece)
                if continuous:
                    events = [event | {"usage": usage.json()} for event in events]
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
                    started = True
                if events:
                    await send({"type": "http.response.body", "body": _encoded(events), "more_body": True})
        tail = _encoded([form.usage_event() | {"usage": usage.json()}]) if include_usage else b""
    except ApiError as error:
        if not started:
            raise
        tail = b"data: " + error.body() + b"\n\n"
    except Exception:
        if not started:
            raise
        logger.exception("a stream failed")
        tail = b"data: " + unforeseen().body() + b"\n\n"
    await send({"type": "http.response.body", "body": tail + _DONE, "more_body": False})


def _encoded(events: list[Json]) -> bytes:
    return b"".join([b"data: " + orjson.dumps(event) + b"\n\n" for event in events])
