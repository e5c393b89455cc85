"""The phases of a front end process, and the requests that it has accepted and not yet answered.

    LOADING ─► READY ─► DRAINING ─► (exit 0)
        └────────┴──────────┴─────► DEAD (exit 1)

Only READY accepts. Draining keeps the listener open on purpose: a refused connection looks like a crash, a 503 with
Retry-After tells the client to go elsewhere.
"""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from time import monotonic
from typing import Final

from capstan_engine.server.errors import ApiError

_RETRY_AFTER_S: Final = 5


class Phase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Lifecycle:
    """Knows the phase and counts open requests."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.num_open = 0
        self.reason = ""
        self._drain_until = math.inf
        self._idle = asyncio.Event()
        self._idle.set()

    def loaded(self) -> None:
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    def drain(self, timeout_s: float | None = None) -> None:
        """Accept nothing more. The accepted have until `timeout_s` from now; a later call may only shorten that."""
        if self.phase is Phase.DEAD:
            return
        self.phase = Phase.DRAINING
        if timeout_s is not None:
            self._drain_until = min(self._drain_until, monotonic() + timeout_s)

    def died(self, reason: str) -> None:
        self.phase, self.reason = Phase.DEAD, reason

    def check(self) -> None:
        """Raises `ApiError` 503 when no request is accepted."""
        if self.phase is Phase.READY:
            return
        message = {
            Phase.LOADING: "The model is still loading.",
            Phase.DRAINING: "This server is draining and accepts no new requests.",
            Phase.DEAD: "The engine has stopped and is being restarted.",
        }[self.phase]
        raise ApiError(503, message, code=self.phase.value, retry_after=_RETRY_AFTER_S)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """The time between a request's acceptance and its answer. Raises as `check` does."""
        self.check()
        self.num_open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_open -= 1
            if not self.num_open:
                self._idle.set()

    async def drained(self) -> bool:
        """Wait until no request is open, no longer than `drain` allows. False when some still are."""
        timeout = None if math.isinf(self._drain_until) else max(0.0, self._drain_until - monotonic())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)
        return not self.num_open

    async def idle(self) -> None:
        """Wait until no request is open, however long that takes."""
        await self._idle.wait()
