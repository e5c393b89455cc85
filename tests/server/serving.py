"""A front end on loopback ports, as the tests of the server want it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from capstan_api.engine_args import EngineArgs, SloClass
from capstan_api.limits import Envelope
from capstan_engine.client import EngineClient
from capstan_engine.server.admin import create_admin_app
from capstan_engine.server.app import create_app
from capstan_engine.server.front_end import FrontEnd
from capstan_engine.server.listener import HttpServer, bound, port_of

MODEL = Path(__file__).parents[2] / "runtime_image" / "models" / "capstan-tiny"
ADMIN_TOKEN = "admin-token"
TEXT = "The quick brown fox — naïve, 日本語, 😀 — jumps over the lazy dog."
SLO_CLASSES = (
    SloClass(name="interactive", priority=10, ttft_seconds=30, tpot_seconds=10, model_alias="tiny-fast"),
    SloClass(name="batch", priority=0, ttft_seconds=1e-9, tpot_seconds=1e-9, header_value="bulk"),
)


@dataclass
class Served:
    """A running front end, with HTTP clients for both ports."""

    front: FrontEnd
    url: str
    admin_url: str
    http: httpx.AsyncClient
    admin: httpx.AsyncClient


def make_args(**changes: object) -> EngineArgs:
    settings: dict[str, object] = {
        "model": MODEL,
        "served_model_names": ("tiny", "other"),
        "max_model_len": 256,
        "envelope": Envelope(min_sequences=2, max_sequences=8, min_batched_tokens=16, max_batched_tokens=64),
        "slo_classes": SLO_CLASSES,
    }
    return EngineArgs.model_validate(settings | changes)


@asynccontextmanager
async def serving(
    client: EngineClient,
    *,
    api_key: str | None = None,
    admin_token: str | None = ADMIN_TOKEN,
    load: bool = True,
    network: bool = False,
    **args: object,
) -> AsyncIterator[Served]:
    """A front end around `client`. Without `network` its applications are called directly, which is much faster."""
    front = FrontEnd(make_args(**args), client)
    apps = (create_app(front, api_key=api_key), create_admin_app(front, token=admin_token))
    headers = {"authorization": f"Bearer {admin_token}"}
    async with AsyncExitStack() as cleanup:
        cleanup.callback(front.limits.end_lease)
        transports: list[httpx.AsyncBaseTransport | None]
        if network:
            listeners = [bound("127.0.0.1", 0, "port") for _ in apps]
            urls = [f"http://127.0.0.1:{port_of(listener)}" for listener in listeners]
            servers = [HttpServer(app, listener) for app, listener in zip(apps, listeners, strict=True)]
            await asyncio.gather(*(server.open() for server in servers))
            cleanup.push_async_callback(_close, servers)
            transports = [None, None]
        else:
            urls = ["http://api", "http://admin"]
            transports = [httpx.ASGITransport(app) for app in apps]
        cleanup.push_async_callback(client.close)
        if load:
            await front.load()
        http, admin = [
            await cleanup.enter_async_context(
                httpx.AsyncClient(base_url=url, transport=transport, timeout=20, headers=own, trust_env=False)
            )
            for url, transport, own in zip(urls, transports, ({}, headers), strict=True)
        ]
        yield Served(front, *urls, http, admin)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so: what happens in another process or at a connection's far end has no event here."""
    while not await condition():  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.02)


async def _close(servers: list[HttpServer]) -> None:
    await asyncio.gather(*(server.close() for server in servers))
