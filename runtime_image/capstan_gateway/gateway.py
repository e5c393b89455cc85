"""A whole gateway: its parts put together, listening on two ports of one event loop.

Knows no process: no arguments, environment, signals or standard streams. Tests run it beside fake replicas.
"""

import asyncio
import logging
import socket
from types import TracebackType
from typing import Final, Self

import aiohttp

from capstan_api.engine_args import GatewayArgs
from capstan_gateway.admin import admin_app
from capstan_gateway.app import public_app
from capstan_gateway.bodies import MAX_TOTAL_BYTES, Bodies
from capstan_gateway.config import LiveConfig
from capstan_gateway.exchange import Fleet
from capstan_gateway.holding import WaitingRoom
from capstan_gateway.listener import CannotListen, Listener
from capstan_gateway.metrics import GatewayMetrics
from capstan_gateway.proxy import Proxy
from capstan_gateway.replicas import ReplicaTable

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S: Final = 2.0
# Well under the 120 s that an engine keeps an idle connection, or requests would race its closing.
_POOL_KEEP_ALIVE_S: Final = 30.0


class Gateway:
    """Use as an async context manager; on exit everything still open is ended with an error."""

    def __init__(
        self,
        args: GatewayArgs,
        *,
        api_key: str | None = None,
        admin_token: str | None = None,
        max_body_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        """Bodies of open requests hold `max_body_bytes` together. Raises ValueError when classes are ambiguous."""
        self._config = LiveConfig(args)
        self._bodies = Bodies(max_body_bytes)
        self._api_key = api_key
        self._admin_token = admin_token
        self._drain: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> Self:
        """Bind and listen. Raises CannotListen."""
        args = self._config.args
        room = WaitingRoom(args.max_held_requests)
        table = ReplicaTable(on_ready=room.release)
        metrics = GatewayMetrics(args.slo_classes, table, room)
        session = _session()
        self._fleet = Fleet(table, room, session, metrics, self._config)
        self._proxy = Proxy(self._fleet, self._bodies)
        public = public_app(self._proxy, self._config, metrics, self._api_key)
        admin = admin_app(
            self._proxy, self._fleet, configure=self.configure, drain=self.start_draining, token=self._admin_token
        )
        self._listeners: list[Listener] = []
        try:
            for app, port in ((public, args.port), (admin, args.admin_port)):
                self._listeners.append(await Listener(app, args.host, port).start())
        except CannotListen:
            await self._close()
            raise
        self.port, self.admin_port = (listener.port for listener in self._listeners)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._proxy.start_draining()
        self._proxy.interrupt_all()
        await self._close()

    def configure(self, args: GatewayArgs) -> None:
        """Go by `args` from now on; address, ports and processors stay. Open requests end as what they came as.

        Nothing is awaited, so no request sees one half of it. Raises ValueError, and then nothing has changed.
        """
        self._config.replace(args)
        self._fleet.room.max_held = args.max_held_requests
        self._fleet.metrics.declare(args.slo_classes)
        logger.info("configured: classes %s", ", ".join(slo_class.name for slo_class in args.slo_classes))

    def start_draining(self, timeout_s: float | None = None) -> None:
        """Refuse new requests and finish the accepted ones; begun once, later calls change nothing."""
        self._proxy.start_draining()
        if self._drain is None:
            timeout_s = self._config.args.drain_timeout_seconds if timeout_s is None else timeout_s
            logger.info("draining: %d requests are open", self._proxy.num_open)
            self._drain = asyncio.create_task(self._proxy.drain(timeout_s))

    async def drained(self) -> bool:
        """Waits for the end of draining, beginning it if need be. True when every request was finished."""
        self.start_draining()
        assert self._drain is not None
        return await self._drain

    async def _close(self) -> None:
        await asyncio.gather(*(listener.close() for listener in self._listeners))
        if self._drain is not None:
            self._drain.cancel()
        await self._fleet.session.close()


def _session() -> aiohttp.ClientSession:
    """The client for replicas: as many connections as there are requests, and no limit on how long an answer takes."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_POOL_KEEP_ALIVE_S, socket_factory=_socket),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("User-Agent",),
    )


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices within about 30 s that the other machine is gone; without this a stream would hang.

    While it waits, by asking; for a request that was just sent there is no asking, only a limit to sending it again
    (tcp(7)), which by default is a quarter of an hour.
    """
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return sock
