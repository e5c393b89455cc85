"""The whole operator in this process, before an API server in a few lines: watches, lease, loops and health port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from capstan_operator.config import OperatorConfig
from capstan_operator.operation import Operation
from fake_kubernetes import FakeKubernetes

NAMESPACE = "capstan-system"


@asynccontextmanager
async def running(server: FakeKubernetes, **configuration: Any) -> AsyncIterator[str]:
    """The address of its health port, once it knows all that there is. It ends, in order, with the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = OperatorConfig.model_validate(
        {
            "images": {"engine": "registry/capstan-engine:1", "operator": "registry/capstan:1"},
            "lease": {"namespace": NAMESPACE, "identity": "operator-0"},
            "healthHost": "127.0.0.1",
            "healthPort": port,
            **configuration,
        }
    )
    stop = asyncio.Event()
    operation = Operation(config, b"k" * 32, ApiClient(Configuration(host=server.url)))
    operating = asyncio.create_task(operation.run(stop))
    try:
        url = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(30), aiohttp.ClientSession() as session:
            while not operating.done() and not await _is_ready(session, url):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield url
    finally:
        stop.set()
        await operating


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientConnectionError:
        return False
