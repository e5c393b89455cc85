"""How long and how often something is tried again.

The surprising idea: attempts are not counted, stillness is. A download that loses its connection a hundred times and
moves on each time is a slow success; one that has not moved for `patience_s` is over.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import uniform
from time import monotonic
from typing import Final, TypeVar

from capstan_fetch.errors import Hiccup, SourceError

logger = logging.getLogger(__name__)

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 20.0

T = TypeVar("T")


class Patience:
    """Shared by all that wait for one source: bytes of any file are progress for all."""

    def __init__(self, patience_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._moved_at = clock()

    def moved(self) -> None:
        """Something was received."""
        self._moved_at = self._clock()

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, called again after each `Hiccup`. Raises `SourceError` when patience ends."""
        wait_s = _FIRST_WAIT_S
        while True:
            began = self._clock()
            try:
                return await attempt()
            except Hiccup as hiccup:
                if self._moved_at > began:
                    wait_s = _FIRST_WAIT_S
                pause_s = hiccup.retry_after_s if hiccup.retry_after_s is not None else uniform(wait_s / 2, wait_s)  # noqa: S311 - jitter
                if self._clock() + pause_s - self._moved_at > self._patience_s:
                    raise SourceError(
                        f"spec.model.source.uri: {hiccup}, and nothing has come for {self._patience_s:.0f} s; it will "
                        f"be tried again from where it stopped"
                    ) from None
                logger.warning("%s; trying again in %.1f s", hiccup, pause_s)
            await asyncio.sleep(pause_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
