"""Files over HTTP as hubs, buckets and content networks serve them, with the faults that tests ask for."""

import asyncio
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Fault:
    """What goes wrong with one answer. `after` bytes of the body are sent before it happens."""

    kind: str
    """`status`, `cut` (the connection breaks), `short` (it ends early, and nothing tells), `flip` (one bit differs),
    `hold` (nothing more comes until `release`), `whole` (a range is not understood), `none`."""
    path: str | None = None
    """The file that it happens to; None for the next one, whichever it is."""
    after: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Seen:
    """One request as a server got it."""

    path: str
    query: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class Site:
    """An application on a free port of `address`, and the requests that it got. An async context manager.

    `host` is what others shall call it, the address if nothing else.
    """

    def __init__(
        self, app: web.Application, seen: list[Seen], address: str = "127.0.0.1", host: str | None = None
    ) -> None:
        self._address = address
        self._host = host or address
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self.seen = seen

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address, 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def authority(self) -> str:
        return f"{self._host}:{self._runner.addresses[0][1]}"

    @property
    def url(self) -> str:
        return f"http://{self.authority}"


def note(seen: list[Seen], request: web.Request) -> None:
    headers = {name.lower(): value for name, value in request.headers.items()}
    seen.append(Seen(request.raw_path.partition("?")[0], request.query_string, headers))


async def send(
    request: web.Request,
    content: bytes,
    faults: deque[Fault],
    headers: dict[str, str] | None = None,
    path: str | None = None,
) -> web.StreamResponse:
    """`content`, or the range of it that is asked for, spoiled by the next fault if there is one."""
    fault = next((fault for fault in faults if fault.path in (None, path)), None)
    if fault is None or request.method != "GET":
        fault = Fault("none")
    else:
        faults.remove(fault)
    if fault.kind == "status":
        return web.Response(status=fault.status, headers=fault.headers, text="no")
    match = _RANGE.fullmatch(request.headers.get("Range", ""))
    start = int(match[1]) if match and fault.kind != "whole" else 0
    body = bytearray(content[start:])
    if fault.kind == "flip":
        body[fault.after] ^= 1
    response = web.StreamResponse(status=206 if start else 200, headers=headers)
    if fault.kind == "short":
        response.enable_chunked_encoding()
        body = body[: fault.after]
    else:
        response.content_length = len(body)
    if start:
        response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    response.headers.update(fault.headers)
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    if fault.kind in ("cut", "hold"):
        await response.write(bytes(body[: fault.after]))
        body = body[fault.after :]
        fault.reached.set()
        if fault.kind == "hold":
            await fault.release.wait()
        else:
            assert request.transport is not None
            request.transport.close()
            return response
    try:
        await response.write(bytes(body))
        await response.write_eof()
    except ConnectionError:
        fault.reached.set()
    return response
