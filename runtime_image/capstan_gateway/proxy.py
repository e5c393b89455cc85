"""The door for requests that go to a replica: accepts them, keeps account of those open, and closes in order.

What happens to one request between acceptance and answer is `exchange`'s subject. The door knows when the last one is
out, which is what draining means.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from capstan_gateway import access
from capstan_gateway.bodies import Bodies, Body
from capstan_gateway.errors import Draining, GatewayError, InternalError, TooManyBytes
from capstan_gateway.exchange import Exchange, Fleet
from capstan_gateway.incoming import ClientGone, Incoming, parse, read_body, request_id_of
from capstan_gateway.interruption import Interruption
from capstan_gateway.metrics import Ended, Outcome, outcome_of
from capstan_gateway.reply import Reply

logger = logging.getLogger(__name__)

# A gateway that goes away has, or will have in a moment, another one in its place.
_DRAINING_RETRY_AFTER_S: Final = 1.0
_MEASURED_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})


class Proxy:
    """ASGI application for the proxied routes."""

    def __init__(self, fleet: Fleet, bodies: Bodies) -> None:
        self._fleet = fleet
        self._bodies = bodies
        self._interruptions: set[Interruption] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.num_open = 0
        """Requests that have arrived and are not answered in full."""
        self.draining = False

    def start_draining(self) -> None:
        """Take nothing new from now on."""
        self.draining = True

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new and wait for what was accepted; what is left after `timeout_s` seconds ends with an error.

        True when everything was finished in time.
        """
        self.start_draining()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            logger.warning("drain timeout: ending %d requests", self.num_open)
            self.interrupt_all()
            return False
        return True

    def interrupt_all(self) -> None:
        """End every accepted request with an error that says so."""
        for interruption in tuple(self._interruptions):
            interruption.interrupt(_draining())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival = self._fleet.clock()
        headers = Headers(scope=scope)
        reply = Reply(send, request_id_of(headers))
        measured = scope["path"] in _MEASURED_PATHS
        with self._opened(), self._bodies.one() as account:
            try:
                body = await self._read(headers, receive, account)
                incoming = self._understood(scope["path"], headers, body, reply.request_id, arrival)
            except ClientGone:
                # Without its body it never was a request.
                return
            except GatewayError as error:
                await reply.fail(error)
                if measured:
                    refused = isinstance(error, Draining | TooManyBytes)
                    outcome = Outcome.REJECTED if refused else Outcome.INVALID
                    default = self._fleet.config.classes.default
                    self._fleet.metrics.arrived(default, 0)
                    self._fleet.metrics.ended(default, Ended(outcome), 0)
                return
            if measured:
                self._fleet.metrics.arrived(incoming.slo_class, incoming.num_prompt_tokens)
            ended = await self._serve(incoming, receive, reply, measured=measured)
            if measured:
                self._fleet.metrics.ended(incoming.slo_class, ended, incoming.num_prompt_tokens)
                estimate = self._fleet.metrics.estimated(incoming.num_prompt_tokens)
                access.log(incoming, ended, estimate, self._fleet.clock())

    async def _read(self, headers: Headers, receive: Receive, account: Body) -> bytes:
        if self.draining:
            raise _draining()
        return await read_body(headers, receive, account)

    def _understood(self, path: str, headers: Headers, body: bytes, request_id: str, arrival: float) -> Incoming:
        config = self._fleet.config
        return parse(
            path,
            headers,
            body,
            config.classes,
            request_id=request_id,
            arrival=arrival,
            prefix_affinity=config.args.prefix_affinity,
        )

    async def _serve(self, incoming: Incoming, receive: Receive, reply: Reply, *, measured: bool) -> Ended:
        interruption = Interruption(receive)
        self._interruptions.add(interruption)
        try:
            async with interruption:
                return await Exchange(incoming, reply, self._fleet, measured=measured).run()
        except ClientGone:
            return Ended(Outcome.CANCELLED)
        except GatewayError as error:
            failure = error
        except Exception:
            # One request's trouble is not the others'; its text is for the log and not for the client.
            logger.exception("request %s failed", incoming.request_id)
            failure = InternalError("The gateway failed on this request.")
        finally:
            self._interruptions.discard(interruption)
        outcome = Outcome.TRUNCATED if reply.started else outcome_of(failure.status)
        if reply.is_whole:
            outcome = Outcome.COMPLETED
        await reply.fail(failure)
        return Ended(outcome)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        self.num_open += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.num_open -= 1
            if not self.num_open:
                self._empty.set()


def _draining() -> Draining:
    return Draining("The gateway is shutting down. Try again.", retry_after_s=_DRAINING_RETRY_AFTER_S)
