"""The answer to one client, whole or as a stream, and the right way to fail at any point of it.

Until the first byte of a stream is there nothing at all is sent, so an error can still be a proper response; afterwards
it is an error event and `[DONE]`, so that a cut stream never looks complete.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import orjson
from starlette.types import Send

from capstan_api.names import HEADER_REQUEST_ID
from capstan_gateway.errors import GatewayError

# Of one connection, or written by the server that answers the client.
_NOT_RETURNED: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "date",
        "server",
        HEADER_REQUEST_ID,
    }
)


class Reply:
    """Owns the ASGI `send` of one request."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.started = False
        self.is_whole = False
        """The stream's own end marker has been sent: nothing may follow it."""

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A complete response."""
        await self._start(status, {**headers, "content-length": str(len(body))})
        await self._send({"type": "http.response.body", "body": body})

    async def stream(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin a stream."""
        await self._start(status, {**headers, "x-accel-buffering": "no"})

    async def write(self, chunk: bytes) -> None:
        """Send a piece of a stream now; returns when the client's connection has room for more."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        """End a stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: GatewayError) -> None:
        """Say what went wrong, as a response or, inside a stream, as its last event; behind its end, nothing."""
        body = orjson.dumps(error.body())
        if self.is_whole:
            await self.end()
        elif self.started:
            await self.write(b"data: " + body + b"\n\ndata: [DONE]\n\n")
            await self.end()
        else:
            await self.whole(error.status, {"content-type": "application/json", **error.headers()}, body)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        named = {**headers, HEADER_REQUEST_ID: self.request_id}
        encoded = [(name.encode(), value.encode(errors="surrogateescape")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})


def returned_headers(upstream: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A replica's response headers that go on to the client, in lower case."""
    return {name.lower(): value for name, value in upstream if name.lower() not in _NOT_RETURNED}
