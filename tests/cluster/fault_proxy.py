"""A proxy before the API server that breaks what passes through it, and tells somebody at each write.

It speaks plain HTTP to the operator and, with an administrator's certificate, TLS to the API server. A fault holds for
the requests that it is meant for from the moment it is set until it is cleared, and reaches streams that are open by
then. The surprising idea: `on_write` is asked before a write is forwarded, after the API server has answered it and
after that answer was passed on, and may end the writer at each of these moments: True means that nobody is left to
answer.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from capstan_operator.world.kubernetes.connection import connect

WRITES: Final = frozenset({"create", "update", "patch", "delete"})
VERBS: Final = frozenset({"get", "list", "watch", *WRITES})
_PASSED_ON: Final = ("Accept", "Content-Type", "User-Agent")
_DRIP_BYTES, _DRIP_S = 64, 0.02
_LARGEST_BODY: Final = 64 << 20


@dataclass(frozen=True)
class Request:
    """What was asked of the API server, in its own terms; `resource` is the plural, or "" for discovery."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @classmethod
    def of(cls, method: str, path: str, *, watch: bool = False) -> "Request":
        parts = path.strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        resource, name, subresource, *_ = [*rest, "", "", ""]
        if method == "GET":
            verb = "watch" if watch else "get" if name or not resource else "list"
        else:
            verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
        return cls(verb, resource, namespace, name, subresource)

    @property
    def is_write(self) -> bool:
        """Whether it changes something other than the lease, which is renewed whatever happens."""
        return self.verb in WRITES and self.resource != "leases"


class How(StrEnum):
    """What becomes of a request."""

    STATUS = "status"  # answered with an error, never forwarded
    IN_STREAM = "in-stream"  # a watch is opened, says an error and ends
    HANG = "hang"  # nothing comes back until the fault is cleared
    DROP = "drop"  # the connection is reset
    SLOW = "slow"  # the answer comes in drips


@dataclass(frozen=True)
class Fault:
    """Something wrong with the API server, or on the way to it."""

    how: How
    code: int = 0
    retry_after_s: int | None = None
    verbs: Collection[str] = VERBS

    def __str__(self) -> str:
        return f"{self.how}{f' {self.code}' if self.code else ''} of {'|'.join(sorted(self.verbs))}"

    def concerns(self, request: Request) -> bool:
        return request.verb in self.verbs


class Moment(StrEnum):
    """Of a write on its way."""

    BEFORE = "before it is forwarded"
    FORWARDED = "between the API server's answer and its delivery"
    ANSWERED = "after its answer"


@dataclass(frozen=True)
class Passage:
    """A request that was answered; `code` is 0 when it was not."""

    at: float
    request: Request
    code: int


class FaultProxy:
    """Use `proxy(...)`. Everything that passes is noted in `passages`."""

    def __init__(self, upstream: aiohttp.ClientSession, host: str) -> None:
        self._upstream = upstream
        self._host = host
        self._fault: Fault | None = None
        self._changed = asyncio.Event()
        self.passages: list[Passage] = []
        self.on_write: Callable[[Moment, Request], bool] = lambda _, __: False

    @property
    def writes(self) -> list[Request]:
        """What was written and accepted, the lease aside."""
        return [p.request for p in self.passages if p.request.is_write and 200 <= p.code < 300]

    def set(self, fault: Fault | None) -> None:
        """From now on this is wrong, or nothing is."""
        self._fault = fault
        self._changed.set()
        self._changed = asyncio.Event()

    async def handle(self, incoming: web.Request) -> web.StreamResponse:
        """One request, through or not."""
        request = Request.of(incoming.method, incoming.path, watch="watch" in incoming.query)
        body = await incoming.read()
        fault = self._concerning(request)
        if fault is not None and fault.how not in (How.SLOW, How.IN_STREAM):
            return await self._refuse(incoming, request, fault)
        if request.is_write and self.on_write(Moment.BEFORE, request):
            return self._cut(incoming, request)
        headers = {name: incoming.headers[name] for name in _PASSED_ON if name in incoming.headers}
        url = f"{self._host}{incoming.rel_url}"
        async with self._upstream.request(incoming.method, url, headers=headers, data=body or None) as answer:
            kept = {name: answer.headers[name] for name in ("Content-Type", "Retry-After") if name in answer.headers}
            if request.verb == "watch" and answer.status == 200:
                self._note(request, answer.status)
                return await self._stream(incoming, request, answer, kept)
            content = await answer.read()
        if request.is_write and self.on_write(Moment.FORWARDED, request):
            return self._cut(incoming, request)
        response = web.StreamResponse(status=answer.status, headers=kept)
        response.content_length = len(content)
        # Noted before it is passed on: whoever has the answer must find the passage.
        self._note(request, answer.status)
        await response.prepare(incoming)
        await self._write(response, request, content)
        await response.write_eof()
        if request.is_write:
            self.on_write(Moment.ANSWERED, request)
        return response

    async def _refuse(self, incoming: web.Request, request: Request, fault: Fault) -> web.StreamResponse:
        if fault.how is How.HANG:
            while self._concerning(request) is fault:
                await self._changed.wait()
        if fault.how is not How.STATUS:
            return self._cut(incoming, request)
        self._note(request, fault.code)
        headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
        return web.json_response(_status(fault.code), status=fault.code, headers=headers)

    async def _stream(
        self, incoming: web.Request, request: Request, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(incoming)
        chunk: asyncio.Task[bytes] | None = None
        try:
            while True:
                fault, changed = self._concerning(request), self._changed
                if fault is not None and fault.how is How.HANG:
                    await changed.wait()
                    continue
                if fault is not None and fault.how is How.IN_STREAM:
                    event = {"type": "ERROR", "object": _status(fault.code)}
                    await response.write(json.dumps(event).encode() + b"\n")
                    await response.write_eof()
                    return response
                if fault is not None and fault.how is not How.SLOW:
                    return self._cut(incoming, request)
                chunk = chunk or asyncio.create_task(answer.content.readany())
                change = asyncio.create_task(changed.wait())
                await asyncio.wait({chunk, change}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
                if not chunk.done():
                    continue
                content, chunk = chunk.result(), None
                if not content:
                    await response.write_eof()
                    return response
                await self._write(response, request, content)
        finally:
            if chunk is not None:
                chunk.cancel()

    async def _write(self, response: web.StreamResponse, request: Request, content: bytes) -> None:
        while content:
            fault = self._concerning(request)
            slow = fault is not None and fault.how is How.SLOW
            num_bytes = _DRIP_BYTES if slow else len(content)
            await response.write(content[:num_bytes])
            content = content[num_bytes:]
            if slow:
                await asyncio.sleep(_DRIP_S)

    def _cut(self, incoming: web.Request, request: Request) -> web.StreamResponse:
        self._note(request, 0)
        if incoming.transport is not None:
            incoming.transport.abort()
        return web.Response()

    def _concerning(self, request: Request) -> Fault | None:
        return self._fault if self._fault is not None and self._fault.concerns(request) else None

    def _note(self, request: Request, code: int) -> None:
        self.passages.append(Passage(time.monotonic(), request, code))


@asynccontextmanager
async def proxy(kubeconfig: Path, folder: Path) -> AsyncIterator[tuple[FaultProxy, Path]]:
    """A proxy on a free port of loopback before the API server of `kubeconfig`, and a kubeconfig that leads to it."""
    client = await connect(kubeconfig)
    connector = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context, limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(), auto_decompress=False
    ) as upstream:
        made = FaultProxy(upstream, client.configuration.host)
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", made.handle)
        # A client that is gone takes its watches with it.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        target = folder / "proxy.kubeconfig"
        target.write_text(json.dumps(_kubeconfig(f"http://127.0.0.1:{port}")))
        try:
            yield made, target
        finally:
            made.set(None)
            await runner.cleanup()
            await client.close()


def _kubeconfig(server: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
        "current-context": "proxy",
    }


def _status(code: int) -> dict[str, object]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "said by the fault proxy",
        "reason": {409: "Conflict", 410: "Expired", 403: "Forbidden", 429: "TooManyRequests"}.get(code, ""),
        "code": code,
    }
