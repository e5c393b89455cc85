"""The health port: honest about blindness, and the series of /metrics."""

import asyncio

import aiohttp
import pytest

from capstan_operator.errors import InvalidConfig
from capstan_operator.health import HealthServer


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_complaints_turn_probes_to_503_and_are_told() -> None:
    alive: list[str] = []
    ready = ["not all objects are known yet"]
    server = HealthServer(alive=lambda: alive, ready=lambda: ready, page=lambda: b"a 1\n")
    port = await server.start("127.0.0.1", 0)
    try:
        assert await get(port, "/livez") == (200, "ok")
        assert await get(port, "/readyz") == (503, "not all objects are known yet")
        alive.append("the watch of pods was not heard for 181 s")
        ready.clear()
        assert await get(port, "/livez") == (503, "the watch of pods was not heard for 181 s")
        assert await get(port, "/readyz") == (200, "ok")
        assert await get(port, "/metrics") == (200, "a 1\n")
        assert (await get(port, "/"))[0] == 404
    finally:
        await server.close()


async def test_a_port_that_is_taken_is_named() -> None:
    other = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    server = HealthServer(alive=list, ready=list, page=bytes)
    with pytest.raises(InvalidConfig, match=f"healthPort: 127.0.0.1:{port} cannot be used"):
        await server.start("127.0.0.1", port)
    await server.close()
    other.close()
    await other.wait_closed()
