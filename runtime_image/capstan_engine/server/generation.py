"""One sequence on its way from the engine to the client: tokens become text, stop strings end it, its end is counted.

The API's shapes are unknown here: this module yields `Piece`s, and the formats turn them into JSON. Closing any of its
iterators (a client that leaves, an error in a sibling) aborts the sequence in the engine.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from capstan_engine.client import EngineClient
from capstan_engine.errors import CapstanEngineError, QueueFull, RequestError, RequestTooLarge
from capstan_engine.messages import FinishReason, Output, Submit, TokenLogprobs
from capstan_engine.server.errors import ApiError
from capstan_engine.server.metrics import Metrics
from capstan_engine.text import Detokenizer, StopStrings
from capstan_engine.text.stop_strings import StopMatch

DEADLINE_EXCEEDED: Final = "deadline_exceeded"


@dataclass(slots=True)
class Piece:
    """What one output adds to a choice. The last piece of a choice has `finish_reason`, `stop` or `length`."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0

    def absorb(self, later: "Piece") -> None:
        """Become this piece and the `later` one of the same choice."""
        self.text += later.text
        self.token_ids = self.token_ids + later.token_ids
        if later.logprobs is not None:
            self.logprobs = (self.logprobs or []) + later.logprobs
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason


@dataclass(frozen=True)
class Job:
    """One sequence to generate. `index` is its place among the answer's choices."""

    index: int
    submit: Submit
    detokenizer: Detokenizer
    stops: StopStrings
    arrival: float
    """Monotonic time of the HTTP request, from which latencies are counted."""
    requested_stop_ids: frozenset[int] = frozenset()
    """The request's own `stop_token_ids`: only these are named as `stop_reason`."""
    shows_stop: bool = False
    """The token or string that ends the output is part of it."""
    silent: bool = False
    """The request wants no output (max_tokens 0); the token that the engine draws anyway is dropped."""


async def pieces(client: EngineClient, metrics: Metrics, job: Job) -> AsyncGenerator[Piece, None]:
    """The pieces of one sequence. Raises `ApiError` when the engine refuses or fails it, or its deadline passes."""
    record = metrics.begin(job.submit.slo_class, job.arrival, len(job.submit.prompt_token_ids))
    try:
        async with aclosing(client.generate(job.submit)) as outputs:
            num_tokens = 0
            async for output in outputs:
                now = monotonic()
                if output.first_scheduled_time is not None:
                    record.scheduled(output.first_scheduled_time)
                if output.token_ids:
                    record.delivered(now, len(output.token_ids))
                if output.finish_reason not in (None, FinishReason.STOP, FinishReason.LENGTH):
                    raise _failure(output)
                piece = _piece(job, output, num_tokens)
                num_tokens += len(output.token_ids)
                if piece.finish_reason is not None:
                    record.completed(FinishReason(piece.finish_reason))
                    yield piece
                    return
                yield piece
    except RequestError as error:
        record.rejected(_rejection(error))
        raise ApiError.from_engine(error) from error
    except CapstanEngineError as error:
        record.failed(FinishReason.ERROR)
        raise ApiError.from_engine(error) from error
    except ApiError as error:
        record.failed(FinishReason.DEADLINE if error.code == DEADLINE_EXCEEDED else FinishReason.ERROR)
        raise
    finally:
        record.close()


def _piece(job: Job, output: Output, num_tokens_before: int) -> Piece:
    """The piece of one output; stop strings are looked for from the `min_tokens`-th token on."""
    finish = None if output.finish_reason is None else output.finish_reason.value
    piece = Piece(
        job.index,
        prompt_logprobs=output.prompt_logprobs,
        finish_reason=finish,
        stop_reason=_stop_reason(job, output),
        num_cached_tokens=output.num_cached_tokens,
    )
    if job.silent:
        return piece
    piece.token_ids, piece.logprobs = output.token_ids, output.logprobs
    num_shown = len(output.token_ids) - (output.stop_token_id is not None and not job.shows_stop)
    min_tokens = job.submit.params.min_tokens
    shown: list[str] = []
    for position, token_id in enumerate(output.token_ids[:num_shown], start=1):
        text = job.detokenizer.push(token_id)
        found = job.stops.push(text) if num_tokens_before + position >= min_tokens else text
        if isinstance(found, StopMatch):
            return _stopped(piece, shown, found, position)
        shown.append(found)
    if finish is not None:
        found = job.stops.push(job.detokenizer.flush())
        if isinstance(found, StopMatch):
            return _stopped(piece, shown, found, len(output.token_ids))
        shown += (found, job.stops.flush())
    piece.text = "".join(shown)
    return piece


def _stopped(piece: Piece, shown: list[str], match: StopMatch, num_tokens: int) -> Piece:
    """The piece cut after the token that completed a stop string."""
    piece.text = "".join(shown) + match.text
    piece.token_ids = piece.token_ids[:num_tokens]
    piece.logprobs = piece.logprobs and piece.logprobs[:num_tokens]
    piece.finish_reason, piece.stop_reason = FinishReason.STOP.value, match.stop
    return piece


def _stop_reason(job: Job, output: Output) -> int | None:
    """The id that stopped the sequence, when the request asked for that id; the model's own end has no reason."""
    return output.stop_token_id if output.stop_token_id in job.requested_stop_ids else None


def _failure(output: Output) -> ApiError:
    match output.finish_reason:
        case FinishReason.DEADLINE:
            return ApiError(408, "The request's deadline has passed.", code=DEADLINE_EXCEEDED)
        case FinishReason.ABORT:
            return ApiError(503, "The engine has aborted the request.", code="aborted", retry_after=1)
        case _:
            return ApiError(500, output.error or "The engine could not compute the request.", code="generation_failed")


def _rejection(error: RequestError) -> str:
    match error:
        case QueueFull():
            return "queue_full"
        case RequestTooLarge():
            return "too_large"
        case _:
            return "invalid"


async def merged(sequences: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """The pieces of several sequences as they come. The first error ends all of them, and so does closing."""
    if len(sequences) == 1:
        async with aclosing(sequences[0]) as only:
            async for piece in only:
                yield piece
        return
    arrived: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_forward(sequence, arrived)) for sequence in sequences]
    try:
        num_open = len(tasks)
        while num_open:
            match await arrived.get():
                case None:
                    num_open -= 1
                case Exception() as error:
                    raise error
                case Piece() as piece:
                    yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(sequence: AsyncGenerator[Piece, None], arrived: asyncio.Queue[Piece | Exception | None]) -> None:
    """Move a sequence's pieces into the queue, then None, or the error that ended it."""
    try:
        async with aclosing(sequence) as open_sequence:
            async for piece in open_sequence:
                arrived.put_nowait(piece)
    except Exception as error:  # handed on to the reader, who raises it
        arrived.put_nowait(error)
    else:
        arrived.put_nowait(None)
