"""The fetcher's admin port: `GET /admin/startup`, on the port where the engine will answer the same question.

Without a token in the environment it is locked, as the engine's is: never open by accident.
"""

import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from capstan_api.names import ENV_ADMIN_TOKEN
from capstan_api.startup import StartupReport
from capstan_fetch.errors import SourceError


@asynccontextmanager
async def admin_port(
    report: Callable[[], StartupReport], host: str, port: int, token: str | None
) -> AsyncIterator[int]:
    """Serves while the context lasts; gives the port. Raises `SourceError` when it cannot be had."""

    async def startup(_: web.Request) -> web.Response:
        return web.json_response(text=report().model_dump_json())

    # Around the whole application: an unknown path needs the token too.
    @web.middleware
    async def door(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if token is None:
            return _refusal(f"The admin port is locked: set {ENV_ADMIN_TOKEN} in the fetcher's environment.")
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_hash(presented.strip()), _hash(token)):
            return _refusal("Missing or wrong bearer token in the Authorization header.")
        return await handler(request)

    app = web.Application(middlewares=[door], client_max_size=1024)
    app.router.add_get("/admin/startup", startup)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise SourceError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _hash(token: str) -> bytes:
    # Equal lengths, so that the comparison's time says nothing about the token's.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _refusal(message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=401, headers={"WWW-Authenticate": "Bearer"})
