"""GET over HTTP, to one endpoint and the hosts that it may send us on to, and to nobody else.

Knows no protocol above HTTP. Redirects are followed by hand, each after the same checks; the socket itself is refused
where the address is not one that may be talked to; proxies of the environment are not asked. The surprising idea: the
credentials are not sent but asked for (`authorize`), per hop, and only the endpoint's own origin has any.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from capstan_api.fetch_args import SourceEndpoint
from capstan_fetch.addresses import guarded_socket
from capstan_fetch.errors import Hiccup, Refused, SourceError

_MAX_REDIRECTS: Final = 5
_CONNECT_TIMEOUT_S: Final = 10.0
_MAX_ERROR_BYTES: Final = 64 << 10
_CHUNK: Final = 1 << 20
_TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})

Authorize = Callable[[URL, Mapping[str, str]], Mapping[str, str]]
"""From a URL of the endpoint and the headers to send, to the headers with credentials."""


class Transport:
    """A session with one endpoint. An async context manager."""

    def __init__(self, endpoint: SourceEndpoint, *, authorize: Authorize, stall_timeout_s: float) -> None:
        self.base = URL(endpoint.url.rstrip("/"))
        self._endpoint = endpoint
        self._authorize = authorize
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                socket_factory=partial(guarded_socket, allow_private=endpoint.allow_private), ttl_dns_cache=60
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=stall_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_CHUNK,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @asynccontextmanager
    async def get(self, url: URL, headers: Mapping[str, str] | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful answer, its body not read yet. Raises `Hiccup`, `Refused` or `SourceError`."""
        wanted = {"Accept-Encoding": "identity", "User-Agent": "capstan-fetch", **(headers or {})}
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                self._check(url)
                sent = self._authorize(url, wanted) if url.origin() == self.base.origin() else wanted
                async with self._session.get(url, headers=sent, allow_redirects=False) as response:
                    target = response.headers.get("Location") if 300 <= response.status < 400 else None
                    if target is None:
                        await _check_answer(response)
                        yield response
                        return
                url = _absolute(url, target)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise _translated(error, url) from None
        raise SourceError(f"{self.base.host} redirects more than {_MAX_REDIRECTS} times")

    async def body(self, url: URL, max_bytes: int, headers: Mapping[str, str] | None = None) -> bytes:
        """A whole answer. Raises `SourceError` too when it is longer than `max_bytes`."""
        chunks, size = [], 0
        async with self.get(url, headers) as response:
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > max_bytes:
                    raise SourceError(f"{url.host} answers with more than {max_bytes} bytes where a list was asked for")
                chunks.append(chunk)
        return b"".join(chunks)

    def _check(self, url: URL) -> None:
        """Raises `SourceError` unless the URL is the endpoint's or one that it may redirect to."""
        allowed = url.origin() == self.base.origin() or (
            url.scheme in ("https", self.base.scheme)
            and any(_matches(url, pattern) for pattern in self._endpoint.redirect_hosts)
        )
        if not allowed:
            raise SourceError(
                f"{self.base.host} sends us to {url.scheme}://{url.authority}, which the operator's settings do not "
                f"allow; add the host to the endpoint's redirectHosts if it belongs to it"
            )


def _matches(url: URL, pattern: str) -> bool:
    """Whether HOST, HOST:PORT or *.DOMAIN means this URL. Without a port the scheme's own is meant."""
    host, port = url.host or "", url.port
    if pattern.startswith("*."):
        return url.is_default_port() and host.lower().endswith(pattern[1:].lower())
    named = URL(f"{url.scheme}://{pattern}")
    return named.host == host.lower() and named.port == port


def _absolute(url: URL, location: str) -> URL:
    try:
        target = url.join(URL(location, encoded=True))
        # Reading the parts is what finds a port that is no number.
        well_formed = target.scheme in ("http", "https") and bool(target.host) and target.port is not None
    except ValueError:
        well_formed = False
    if not well_formed or target.user is not None or target.password is not None:
        raise SourceError(f"{url.host} redirects to something that is no plain http(s) address")
    return target.with_fragment(None)


async def _check_answer(response: aiohttp.ClientResponse) -> None:
    status, host = response.status, response.url.host or ""
    if status in (200, 206):
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceError(f"{host} compresses its answer although it was asked not to")
        return
    if status in _TRY_AGAIN:
        wish = response.headers.get("Retry-After", "")
        raise Hiccup(f"{host} answered HTTP {status}", float(wish) if wish.isdecimal() and len(wish) < 6 else None)
    # The hub says what it means in a header, S3 in the body.
    code = response.headers.get("X-Error-Code") or _between(
        await response.content.read(_MAX_ERROR_BYTES), b"<Code>", b"</Code>"
    )
    raise Refused(status, host, code if code.isalnum() and len(code) < 64 else "")


def _between(text: bytes, before: bytes, after: bytes) -> str:
    return text.partition(before)[2].partition(after)[0].decode("ascii", "replace")


def _translated(error: Exception, url: URL) -> Hiccup | SourceError:
    """An error of the connection without the query of the URL, which may be a signature."""
    host = url.host or ""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return SourceError(f"{host}: its certificate does not prove that it is {host}")
    if isinstance(error, aiohttp.InvalidURL):
        return SourceError(f"{host!r} is no host's name")
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PermissionError):
        return SourceError(
            f"{host} must not be connected to: {error.os_error.strerror}; a server inside has to be allowed in the "
            f"operator's settings (sourceEndpoints, allowPrivate)"
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Hiccup(f"{host} cannot be resolved")
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Hiccup(f"{host} does not answer in time")
    return Hiccup(f"the connection to {host} failed ({type(error).__name__})")
