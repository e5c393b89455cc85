"""Ending a request from outside: its client has gone, or the gateway must.

A block under `Interruption` is cancelled by the first cause that comes, and leaves with that cause as an exception, so
that the code inside needs no polling and closes its connections on the way out.
"""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

from capstan_gateway.incoming import ClientGone


class Interruption:
    """Watches the client's connection while its block runs. The request's body must have been read before."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._cause: Exception | None = None
        self._task: asyncio.Task[object] | None = None
        self._watch: asyncio.Task[None] | None = None

    def interrupt(self, cause: Exception) -> None:
        """End the block with `cause`. Only the first one counts; call it from another task."""
        if self._cause is None and self._task is not None:
            self._cause = cause
            self._task.cancel()

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._watch = asyncio.create_task(self._watch_client())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        assert self._watch is not None
        self._watch.cancel()
        task, self._task = self._task, None
        # As in asyncio.timeout: somebody else's cancellation goes on, ours becomes its cause.
        if self._cause is not None and task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            raise self._cause from None

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientGone())
