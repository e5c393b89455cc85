"""One HTTP exchange with bounds on its time and on the size of its answer.

What answers may be broken or hostile: bodies are counted while they come in, compression is refused, and redirects are
not followed.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from capstan_operator.errors import AdminError
from capstan_operator.settings import OperatorSettings


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


class BoundedHttp:
    """An HTTP client for loopback and cluster addresses. Close it when done.

    `fence` is awaited before everything but a GET, and raises when nothing may be changed any more.
    """

    def __init__(self, settings: OperatorSettings, *, fence: Callable[[], Awaitable[None]] | None = None) -> None:
        self._fence = fence
        self._max_bytes = settings.max_page_bytes
        self._timeout = aiohttp.ClientTimeout(total=settings.http_timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self, method: str, url: str, *, headers: dict[str, str] | None = None, json: Any = None
    ) -> Answer:
        """Raises `AdminError` when nothing comes back in time, or too much does; and what the fence raises."""
        if self._fence is not None and method != "GET":
            await self._fence()
        if self._session is None:
            # No proxy from the environment: every address is our own.
            self._session = aiohttp.ClientSession(auto_decompress=False, trust_env=False)
        headers = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            async with self._session.request(
                method, url, headers=headers, json=json, timeout=self._timeout, allow_redirects=False
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(64 << 10):
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise AdminError(f"{url} answers with more than {self._max_bytes} bytes")
                return Answer(response.status, bytes(body))
        except TimeoutError:
            raise AdminError(f"{url} does not answer within {self._timeout.total:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise AdminError(f"{url} cannot be reached: {error}") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
