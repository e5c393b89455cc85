"""Listening sockets and the HTTP server on them, without the server's own ideas about signals and logs."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from capstan_engine.errors import ConfigurationError

# Longer than the idle time of any proxy's connection pool, so that the server is never the one who closes first.
_KEEP_ALIVE_S: Final = 120
# What the gateway takes (64 KiB) and what it adds: a request that came so far must not end here.
_MAX_HEADER_BYTES: Final = 72 << 10


def bound(host: str, port: int, field: str) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises `ConfigurationError` naming the `field` that set the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"{field}: cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


class HttpServer(uvicorn.Server):
    """`app` on a bound socket. uvicorn would take the process's signals for itself; here it does not."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                # httptools accepts headers of any size; h11 ends the connection.
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
            )
        )
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def open(self) -> None:
        """Returns once connections are accepted."""
        self._task = asyncio.create_task(self.serve([self._listener]))
        await self._opened.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._opened.set()

    async def close(self) -> None:
        self.should_exit = True
        if self._task is not None:
            await self._task
