"""Scripted engines on loopback ports, and a gateway in front of them on the same event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from capstan_api.engine_args import GatewayArgs, SloClass
from capstan_gateway.gateway import Gateway

TOKEN = "admin-token"
Script = Callable[["FakeReplica", web.Request], Awaitable[web.StreamResponse]]


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def token_event(text: str) -> bytes:
    return event({"id": "x", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


ROLE_EVENT = event({"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
LAST_EVENT = event({"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"


class FakeReplica:
    """Plays `script` for every request, and notes what it was sent."""

    def __init__(self, replica_id: str) -> None:
        self.id = replica_id
        self.url = ""
        self.script: Script = answer
        self.received: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.gate = asyncio.Semaphore(0)
        """`gated` sends one token for every release."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append((request.path, headers, await request.json()))
        self.arrived.set()
        try:
            return await self.script(self, request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def begin_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


async def answer(replica: FakeReplica, request: web.Request) -> web.StreamResponse:
    """Three tokens, streamed or whole as the client asked."""
    body = await request.json()
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    if not body.get("stream"):
        message = {"role": "assistant", "content": "abc"}
        return web.json_response({"choices": [{"index": 0, "message": message}], "usage": usage})
    response = await begin_stream(request)
    await response.write(ROLE_EVENT)
    for text in "abc":
        await response.write(token_event(text))
    await response.write(LAST_EVENT)
    if (body.get("stream_options") or {}).get("include_usage"):
        await response.write(event({"id": "x", "choices": [], "usage": usage}))
    await response.write(DONE)
    return response


async def gated(replica: FakeReplica, request: web.Request) -> web.StreamResponse:
    """One token for every release of the gate, three in all."""
    response = await begin_stream(request)
    for text in "abc":
        await replica.gate.acquire()
        await response.write(token_event(text))
    await response.write(LAST_EVENT + DONE)
    return response


async def linger(replica: FakeReplica, request: web.Request) -> web.StreamResponse:
    """A whole answer whose connection stays open until the gate is released."""
    response = await begin_stream(request)
    await response.write(token_event("a") + LAST_EVENT + DONE)
    await replica.gate.acquire()
    return response


async def hang(replica: FakeReplica, request: web.Request) -> web.StreamResponse:
    """No answer at all."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def reset(replica: FakeReplica, request: web.Request) -> web.StreamResponse:
    """The connection breaks before any byte."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def status(number: int, *, code: str | None = None, **headers: str) -> Script:
    """A whole response with an error status; without `code`, the error's names the replica."""

    async def script(replica: FakeReplica, request: web.Request) -> web.StreamResponse:
        error = {"error": {"message": "no", "type": "t", "param": None, "code": code or f"from_{replica.id}"}}
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(error, status=number, headers=sent)

    return script


def cut_after(*chunks: bytes, clean: bool = False) -> Script:
    """A stream that sends `chunks` and is then lost; `clean` ends it as if nothing were wrong."""

    async def script(replica: FakeReplica, request: web.Request) -> web.StreamResponse:
        response = await begin_stream(request)
        for chunk in chunks:
            await response.write(chunk)
        if not clean:
            # Let the bytes reach the gateway before the reset overtakes them.
            await replica.gate.acquire()
            assert request.transport is not None
            request.transport.abort()
        return response

    return script


async def cut_whole(replica: FakeReplica, request: web.Request) -> web.StreamResponse:
    """A whole response that breaks off half way."""
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "100"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.close()
    return response


class Door:
    """A running gateway and a client for it."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.session = session
        self.url = f"http://127.0.0.1:{gateway.port}"
        self.admin_url = f"http://127.0.0.1:{gateway.admin_port}"

    def chat(self, prompt: str = "hello", *, headers: dict[str, str] | None = None, model: str = "tiny", **fields: Any):
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}
        return self.session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    def admin(self, method: str, path: str, **arguments: Any):
        arguments.setdefault("headers", {"authorization": f"Bearer {TOKEN}"})
        return self.session.request(method, self.admin_url + path, **arguments)

    async def put(self, *replicas: FakeReplica, draining: Iterable[FakeReplica] = ()) -> None:
        """Make the table these replicas."""
        rows = [{"id": r.id, "url": r.url, "state": "Ready"} for r in replicas]
        rows += [{"id": r.id, "url": r.url, "state": "Draining"} for r in draining]
        async with self.admin("PUT", "/admin/replicas", json={"replicas": rows}) as response:
            assert response.status == 200, await response.text()

    async def state(self) -> dict[str, Any]:
        async with self.admin("GET", "/admin/state") as response:
            return await response.json()

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Polls the state until it is as wanted; the test's own timeout bounds it."""
        async with asyncio.timeout(10):
            # The state lives behind an HTTP API, as it does for the operator.
            while not condition(state := await self.state()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return state

    async def metrics(self) -> dict[str, float]:
        """Every sample as `name{label=value,...}`, without the catalogue's common prefix."""
        async with self.session.get(f"{self.url}/metrics") as response:
            text = await response.text()
        samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                samples[f"{sample.name.removeprefix('capstan_gateway_')}{{{labels}}}"] = sample.value
        return samples


CLASSES = (
    SloClass(name="interactive", priority=10, ttft_seconds=30, tpot_seconds=30),
    SloClass(name="batch", priority=0, header_value="bulk", model_alias="tiny-batch"),
)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


@pytest.fixture
async def start_replica() -> AsyncIterator[Callable[..., Awaitable[FakeReplica]]]:
    """`await start_replica("a", script)` gives a replica that listens."""
    async with AsyncExitStack() as stack:

        async def start(replica_id: str, script: Script = answer, port: int = 0) -> FakeReplica:
            app = web.Application(client_max_size=64 << 20)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
            replica = FakeReplica(replica_id)
            replica.script = script
            app.router.add_route("*", "/{path:.*}", replica.handle)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            replica.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            return replica

        yield start


@pytest.fixture
async def start_gateway(session: aiohttp.ClientSession) -> AsyncIterator[Callable[..., Awaitable[Door]]]:
    """`await start_gateway(**GatewayArgs fields)` gives a gateway that listens; its table is empty."""
    async with AsyncExitStack() as stack:

        async def start(*, api_key: str | None = None, admin_token: str | None = TOKEN, **fields: Any) -> Door:
            args = GatewayArgs(
                **{"served_model_names": ("tiny",), "slo_classes": CLASSES, "port": 0, "admin_port": 0} | fields
            )
            gateway = await stack.enter_async_context(Gateway(args, api_key=api_key, admin_token=admin_token))
            return Door(gateway, session)

        yield start


@pytest.fixture
async def door(start_gateway: Callable[..., Awaitable[Door]]) -> Door:
    """A gateway with two classes and no replicas."""
    return await start_gateway()


class Scripts:
    """The scripts by name, for tests (which cannot import this file)."""

    answer = staticmethod(answer)
    gated = staticmethod(gated)
    linger = staticmethod(linger)
    hang = staticmethod(hang)
    reset = staticmethod(reset)
    status = staticmethod(status)
    cut_after = staticmethod(cut_after)
    cut_whole = staticmethod(cut_whole)
    token_event = staticmethod(token_event)


@pytest.fixture(scope="session")
def scripts() -> type[Scripts]:
    return Scripts


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
