"""One HTTP server on the running event loop, with limits on what strangers may send.

The h11 parser is chosen for its bounded header buffer. Signals are left alone: when to stop is the gateway's decision,
because a server that closes its listener at once refuses the clients it should tell to come back. And the protocol is
given a clock for what it would wait for without end: the head of a request.
"""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, Self, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_MAX_HEADER_BYTES: Final = 64 << 10
_HEAD_TIMEOUT_S: Final = 60.0
_KEEP_ALIVE_S: Final = 75
_SHUTDOWN_S: Final = 2
_BACKLOG: Final = 4096


class CannotListen(Exception):
    """The address is taken or not this machine's."""


class _Protocol(H11Protocol):
    """A connection that is closed when a request's head does not come, or does not end."""

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._overdue is None:
            self._overdue = self.loop.call_later(_HEAD_TIMEOUT_S, self.timeout_keep_alive_handler)

    def _stop_watching(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Listener:
    """Serves `app` on a port from `start` to `close`."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        """Binds at once; port 0 takes a free one. Raises CannotListen."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise CannotListen(f"cannot listen on {host} port {port}: {error.strerror}") from None
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_SHUTDOWN_S,
                backlog=_BACKLOG,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Self:
        """Returns when connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await self._server.listening.wait()
        return self

    async def close(self) -> None:
        """Stop listening and close the connections; requests that still run get two seconds."""
        self._server.should_exit = True
        if self._task is None:
            self._socket.close()
        else:
            await self._task
