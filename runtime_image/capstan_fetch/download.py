"""All files of a listing into the staging directory, several at a time, each going on where it stopped.

Knows ranges and lengths; whether the bytes are the right ones is found out later, from the disk.
"""

import asyncio
import os
import re
from collections.abc import Sequence
from typing import Final

import aiohttp

from capstan_fetch.errors import Hiccup, SourceError
from capstan_fetch.listing import Listing, RemoteFile
from capstan_fetch.patience import Patience
from capstan_fetch.progress import Progress
from capstan_fetch.source import Source
from capstan_fetch.staging import Staging
from capstan_fetch.transport import Transport

_CHUNK: Final = 1 << 20
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class Download:
    """One download of one listing."""

    def __init__(
        self,
        source: Source,
        transport: Transport,
        staging: Staging,
        patience: Patience,
        progress: Progress,
        connections: int,
    ) -> None:
        self._source = source
        self._transport = transport
        self._staging = staging
        self._patience = patience
        self._progress = progress
        self._connections = connections

    async def run(self, listing: Listing, files: Sequence[RemoteFile]) -> None:
        """Fetch what is missing of `files`. Raises `SourceError`, `Refused` or `Infeasible`; what has come stays."""
        self._patience.moved()
        # The largest first: one that begins last would be waited for alone.
        queue = sorted(files, key=lambda file: file.size, reverse=True)
        waiting = iter(queue)

        async def work() -> None:
            for file in waiting:
                await self._patience.persist(lambda file=file: self._go_on(listing, file))  # type: ignore[misc]

        workers = [asyncio.ensure_future(work()) for _ in range(min(self._connections, len(queue)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _go_on(self, listing: Listing, file: RemoteFile) -> None:
        """One request for what is missing of the file."""
        offset = self._staging.size(file)
        if offset == file.size and offset:
            return
        descriptor = self._staging.open(file)
        try:
            if file.size == 0:
                return
            url, headers = self._source.locate(self._transport.base, listing, file)
            wanted = {**headers, "Range": f"bytes={offset}-"} if offset else headers
            async with self._transport.get(url, wanted) as response:
                if offset and response.status != 206:
                    # The server does not know ranges.
                    os.ftruncate(descriptor, 0)
                    self._progress.add(-offset)
                    offset = 0
                if not _is_the_rest(response, offset, file):
                    self._staging.forget(file)
                    raise SourceError(
                        f"{response.url.host} has another size for {file.path} than the {file.size} bytes it listed; "
                        f"it will be tried again from the beginning"
                    )
                await self._receive(response, descriptor, file, offset)
        finally:
            os.close(descriptor)

    async def _receive(self, response: aiohttp.ClientResponse, descriptor: int, file: RemoteFile, offset: int) -> None:
        received = offset
        async for chunk in response.content.iter_chunked(_CHUNK):
            received += len(chunk)
            if received > file.size:
                raise SourceError(f"{response.url.host} sends more of {file.path} than the {file.size} bytes it listed")
            await self._append(descriptor, chunk)
            self._progress.add(len(chunk))
            self._patience.moved()
        if received < file.size:
            raise Hiccup(f"{response.url.host} ended {file.path} after {received} of {file.size} bytes")

    async def _append(self, descriptor: int, chunk: bytes) -> None:
        """In a thread: a disk can be slower than a network, and the admin port must answer all the while."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._staging.append, descriptor, chunk))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread cannot be stopped, and the descriptor must not be closed, and its number given away, under it.
            await asyncio.wait([writing])
            raise


def _is_the_rest(response: aiohttp.ClientResponse, offset: int, file: RemoteFile) -> bool:
    """Whether the answer is the rest of the file, from `offset` to its listed end."""
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        return match is not None and tuple(map(int, match.groups())) == (offset, file.size - 1, file.size)
    return response.headers.get("Content-Length", str(file.size)) == str(file.size)
