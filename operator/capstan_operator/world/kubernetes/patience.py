"""Not asking again at once for what was just refused.

The control loop turns every second and asks for what is missing each time. What the API server refuses for good reason
(a quota, a missing right) it would refuse a thousand times; in between the last refusal is repeated from memory.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from capstan_operator.errors import WorldError

T = TypeVar("T")
FIRST_S: Final = 1.0
LONGEST_S: Final = 10.0


@dataclass(frozen=True)
class _Refusal:
    message: str
    until: float
    wait_s: float


class Patience:
    """Remembers refusals by what was asked for; each one in a row doubles the wait, a success ends it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusals: dict[str, _Refusal] = {}

    async def __call__(self, what: str, step: Callable[[], Awaitable[T]]) -> T:
        """Take the step, or raise its last `WorldError` again while it is too early."""
        refused = self._refusals.get(what)
        if refused is not None and self._clock() < refused.until:
            raise WorldError(refused.message)
        try:
            result = await step()
        except WorldError as error:
            wait_s = min(refused.wait_s * 2, LONGEST_S) if refused is not None else FIRST_S
            self._refusals[what] = _Refusal(str(error), self._clock() + wait_s, wait_s)
            raise
        self._refusals.pop(what, None)
        return result
