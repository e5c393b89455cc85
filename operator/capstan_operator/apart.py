"""A leadership in a thread of its own: however long the loops of a thousand resources take, a renewal keeps no time.

Knows nothing of leases. What is asked often, whether the leadership is held, is answered by a look at a clock from any
thread; only what speaks to the API server runs elsewhere, so `inner` needs a client that nobody else uses.

The surprising idea: a fence needs no lock. It can only close by itself, when its time is over, and whoever asks it in
the moment before sends what was still allowed.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from capstan_operator.lease import Leadership, OnChange


class Apart:
    """Implements `Leadership` with another one. `close` ends what that one needs, after it was released."""

    def __init__(self, inner: Leadership, close: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._close = close
        self._loop = asyncio.new_event_loop()
        # A daemon: an end that nobody had planned does not wait for it.
        self._thread = threading.Thread(target=self._loop.run_forever, name="lease", daemon=True)

    @property
    def is_held(self) -> bool:
        return self._inner.is_held

    @property
    def tried_at(self) -> float:
        return self._inner.tried_at

    async def check(self) -> None:
        await self._inner.check()

    async def run(self, on_change: OnChange) -> None:
        """`on_change` is called in the loop that this is awaited in. May be awaited once."""
        ours = asyncio.get_running_loop()

        def tell(is_held: bool) -> None:
            ours.call_soon_threadsafe(on_change, is_held)

        self._thread.start()
        await self._there(self._inner.run(tell))

    async def release(self) -> None:
        if self._thread.is_alive():
            await self._there(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def _end(self) -> None:
        try:
            await self._inner.release()
        finally:
            await self._close()

    async def _there(self, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
