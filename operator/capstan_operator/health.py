"""The operator's one port: /livez, /readyz and /metrics.

Alive means able to do its work: hearing every watch and coming round to the lease. A process that is up and blind is
worse than none, because nobody would start another. Ready means that it knows the cluster, leader or not: a standby is
as ready as it will ever be.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from capstan_operator.errors import InvalidConfig

Complaints = Callable[[], list[str]]
"""Why something is not as it should be, one clause each; empty when it is."""


class HealthServer:
    """Serves until it is closed."""

    def __init__(self, *, alive: Complaints, ready: Complaints, page: Callable[[], bytes]) -> None:
        """`page` is called in a thread of its own."""
        self._alive = alive
        self._ready = ready
        self._page = page
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises `InvalidConfig` when it cannot be had."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise InvalidConfig(f"healthPort: {host}:{port} cannot be used: {error.strerror}") from None
        bound: int = self._runner.addresses[0][1]
        return bound

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return _verdict(self._alive())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self._ready())

    async def _metrics(self, _: web.Request) -> web.Response:
        # A thousand resources have tens of thousands of lines: nothing else may wait for them.
        page = await asyncio.to_thread(self._page)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _verdict(complaints: list[str]) -> web.Response:
    return web.Response(text="\n".join(complaints) or "ok", status=503 if complaints else 200)
