"""One accepted request's life: wait if it must, choose a replica, pass the answer on, try another while it may.

The rule of retries: what has produced a byte for the client is never sent twice. Before that, a replica that cannot be
reached, is not able (503) or is busy (429) is passed over for the others, each at most once; then a request that met a
busy replica is told so, and any other goes back to waiting. The one limit: a request that has been lost by several
replicas after they got it may be what kills them, and is not given to the next. Whether a front end outlived its engine
and answered for it makes no difference.
"""

import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import aiohttp
import orjson

from capstan_api.names import ERROR_ENGINE_DEAD, HEADER_REPLICA, HEADER_TPOT_MS, HEADER_TTFT_MS
from capstan_gateway.config import LiveConfig
from capstan_gateway.errors import DeadlineExceeded, NoReplicaReady, ReplicaLost, TooManyHeld
from capstan_gateway.holding import RoomFull, WaitedTooLong, WaitingRoom
from capstan_gateway.incoming import Incoming
from capstan_gateway.meter import StreamMeter, Usage, usage_of
from capstan_gateway.metrics import Ended, GatewayMetrics, Outcome, outcome_of
from capstan_gateway.replicas import Assignment, Replica, ReplicaTable
from capstan_gateway.reply import Reply, returned_headers
from capstan_gateway.routing import choose

logger = logging.getLogger(__name__)

ASIDE_S: Final = 1.0
"""How long others are preferred to a replica that did not take a request."""
MAX_LOSSES: Final = 3
"""Replicas that may lose a request before it is suspected."""


class _Retry(StrEnum):
    CONNECT = "connect"
    RESET = "reset"
    UNAVAILABLE = "unavailable"
    BUSY = "busy"


@dataclass(frozen=True)
class _Answer:
    """A whole response of a replica."""

    status: int
    headers: dict[str, str]
    body: bytes


class _TryAnother(Exception):
    """This replica does not serve the request, and nothing has reached the client."""

    def __init__(self, reason: _Retry, answer: _Answer | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


@dataclass(frozen=True)
class Fleet:
    """What all requests of a gateway share."""

    table: ReplicaTable
    room: WaitingRoom
    session: aiohttp.ClientSession
    metrics: GatewayMetrics
    config: LiveConfig
    clock: Callable[[], float] = time.monotonic


class Exchange:
    """Carries `incoming` through to its `reply`."""

    def __init__(self, incoming: Incoming, reply: Reply, fleet: Fleet, *, measured: bool) -> None:
        """`measured`: latencies count, which makes no sense for tokenizing."""
        self._incoming = incoming
        self._reply = reply
        self._fleet = fleet
        self._measured = measured
        # Its wait begins anew when a replica is lost that had taken it.
        self._waits_since = incoming.arrival

    async def run(self) -> Ended:
        """Returns when the client has its whole answer. Raises GatewayError when there will be none, or no more."""
        tried: set[Replica] = set()
        busy: _Answer | None = None
        num_losses = 0
        failure: _TryAnother | None = None
        while True:
            replica = self._choose(tried)
            if replica is None:
                if busy is not None:
                    return await self._pass_on(busy)
                await self._hold(tried, accepted=failure is not None)
                tried.clear()
                continue
            if failure is not None:
                self._fleet.metrics.retried(failure.reason)
            tried.add(replica)
            try:
                return await self._attempt(replica)
            except _TryAnother as error:
                failure = error
            logger.info(
                "request %s: replica %s did not take it (%s)", self._incoming.request_id, replica.id, failure.reason
            )
            if failure.reason is _Retry.BUSY:
                busy = failure.answer
                continue
            self._fleet.table.put_aside(replica, self._fleet.clock() + ASIDE_S)
            if failure.reason is _Retry.RESET:
                num_losses += 1
                self._waits_since = self._fleet.clock()
            if num_losses >= MAX_LOSSES:
                raise ReplicaLost(
                    f"{num_losses} replicas were lost while they worked on this request. It is not tried again."
                )

    def _choose(self, tried: set[Replica]) -> Replica | None:
        keys = self._incoming.keys
        ready = {replica.id: replica for replica in self._fleet.table.ready() if replica not in tried}
        tie_key = keys[0] if keys else self._incoming.request_id.encode()
        choice = choose([replica.candidate(keys) for replica in ready.values()], tie_key, self._fleet.clock())
        if choice is None:
            return None
        self._fleet.metrics.chosen(choice.reason)
        return ready[choice.id]

    async def _hold(self, tried: set[Replica], *, accepted: bool) -> None:
        incoming, room = self._incoming, self._fleet.room
        hold_timeout_s = self._fleet.config.args.hold_timeout_seconds
        give_up = self._waits_since + hold_timeout_s
        until = give_up if incoming.deadline is None else min(give_up, incoming.deadline)
        # Ready in the table and yet not taking requests: look again when the first of them may be tried.
        recheck_at = min((r.aside_until for r in self._fleet.table.ready() if r in tried), default=None)
        try:
            await room.wait(
                priority=incoming.slo_class.priority,
                arrival=incoming.arrival,
                until=until,
                recheck_at=recheck_at,
                accepted=accepted,
            )
        except RoomFull:
            raise TooManyHeld(
                "No replica is ready and as many requests wait as may. Try again later.",
                retry_after_s=room.retry_after_s(hold_timeout_s),
            ) from None
        except WaitedTooLong:
            if until != give_up:
                raise DeadlineExceeded("The request's deadline passed before a replica was ready.") from None
            raise NoReplicaReady(
                f"No replica was ready within {hold_timeout_s:g} seconds. Try again later.",
                retry_after_s=room.retry_after_s(hold_timeout_s),
            ) from None

    async def _attempt(self, replica: Replica) -> Ended:
        incoming, fleet = self._incoming, self._fleet
        sent = fleet.clock()
        with fleet.table.assigned(replica, incoming.keys, incoming.num_prompt_tokens) as assignment:
            try:
                async with fleet.session.post(
                    replica.url + incoming.path,
                    data=io.BytesIO(incoming.body),
                    allow_redirects=False,
                    headers=incoming.upstream_headers(sent),
                ) as response:
                    return await self._receive(response, assignment, sent)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                raise _TryAnother(_Retry.CONNECT) from None
            except (aiohttp.ClientError, OSError):
                if self._reply.started:
                    raise _cut() from None
                raise _TryAnother(_Retry.RESET) from None

    async def _receive(self, response: aiohttp.ClientResponse, assignment: Assignment, sent: float) -> Ended:
        headers = returned_headers(response.headers.items()) | {HEADER_REPLICA: assignment.replica.id}
        if response.status == 503:
            is_lost = _error_code_in(await response.read()) == ERROR_ENGINE_DEAD
            raise _TryAnother(_Retry.RESET if is_lost else _Retry.UNAVAILABLE)
        self._fleet.table.take_back(assignment.replica)
        if response.content_type == "text/event-stream":
            return await self._stream(response, headers, assignment)
        answer = _Answer(response.status, headers, await response.read())
        if response.status == 429:
            raise _TryAnother(_Retry.BUSY, answer)
        return await self._pass_on(answer, waited_s=sent - self._incoming.arrival)

    async def _pass_on(self, answer: _Answer, waited_s: float = 0.0) -> Ended:
        await self._reply.whole(answer.status, answer.headers, answer.body)
        outcome = outcome_of(answer.status)
        if not self._measured or outcome is not Outcome.COMPLETED:
            return Ended(outcome)
        ttft_s, tpot_s = _reported_s(answer, HEADER_TTFT_MS), _reported_s(answer, HEADER_TPOT_MS)
        if ttft_s is not None:
            ttft_s += waited_s
            self._fleet.metrics.first_token(self._incoming.slo_class, ttft_s)
        return Ended(outcome, ttft_s, tpot_s, _usage_in(answer.body))

    async def _stream(self, response: aiohttp.ClientResponse, headers: dict[str, str], assignment: Assignment) -> Ended:
        meter = StreamMeter()
        ttft_s: float | None = None
        try:
            async for chunk in response.content.iter_any():
                now = self._fleet.clock()
                assignment.prefill_done()
                complete = meter.feed(chunk, now)
                if ttft_s is None and meter.first_token is not None:
                    ttft_s = meter.first_token - self._incoming.arrival
                    self._fleet.metrics.first_token(self._incoming.slo_class, ttft_s)
                if complete:
                    if not self._reply.started:
                        await self._reply.stream(response.status, headers)
                    await self._reply.write(complete)
                    self._reply.is_whole = meter.done
        except (aiohttp.ClientError, OSError):
            # A connection lost behind the end marker has cost nothing.
            if not meter.done:
                raise
        if not self._reply.started:
            raise _TryAnother(_Retry.RESET)
        if not meter.done:
            raise _cut()
        await self._reply.end()
        if ttft_s is None:
            # An answer without text is as fast as its end.
            ttft_s = self._fleet.clock() - self._incoming.arrival
        usage = Usage(meter.usage.prompt_tokens, meter.num_output_tokens)
        return Ended(Outcome.FAILED if meter.failed else Outcome.COMPLETED, ttft_s, meter.tpot_s, usage)


def _cut() -> ReplicaLost:
    return ReplicaLost("The replica was lost in the middle of the answer. What has arrived is incomplete.")


def _reported_s(answer: _Answer, header: str) -> float | None:
    try:
        return float(answer.headers[header]) / 1000
    except (KeyError, ValueError):
        return None


def _usage_in(body: bytes) -> Usage:
    return usage_of(_object_in(body)) or Usage()


def _error_code_in(body: bytes) -> object:
    error = _object_in(body).get("error")
    return error.get("code") if isinstance(error, dict) else None


def _object_in(body: bytes) -> dict[str, Any]:
    """The JSON object that the body is; empty when it is none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}
