"""The greatest rate that holds, on a ladder of rates. Pure: rungs are whole numbers, and trying one is the caller's.

Takes for granted that no rung holds above one that does not. The surprising idea: one common ladder instead of rates of
each contestant's own, so that contestants who try the same rung meet the same arrivals.
"""

import math
from typing import Final

_STEP: Final = 1.08
"""Each rate is so many times the one below."""


def rate(rung: int) -> float:
    """Of this rung; that of rung 0 is 1."""
    return _STEP**rung


def rung(rate: float) -> int:
    """That with the greatest rate up to this one."""
    return math.floor(math.log(rate, _STEP))


class Search:
    """Strides of growing length until one rung holds and another does not, then halves."""

    def __init__(self, first: int, lowest: int) -> None:
        """Begins at `first` and gives up when `lowest` does not hold."""
        self._next: int | None = max(first, lowest)
        self._lowest = lowest
        self._held: int | None = None
        self._failed: int | None = None
        self._stride = 2

    @property
    def next(self) -> int | None:
        """The rung to try; None when the search has ended."""
        return self._next

    @property
    def best(self) -> int | None:
        """The greatest that held so far."""
        return self._held

    def learn(self, held: bool) -> None:
        """How `next` went."""
        assert self._next is not None
        if held:
            self._held = self._next
        else:
            self._failed = self._next
        self._next = self._following()

    def _following(self) -> int | None:
        if self._held is not None and self._failed is not None:
            return None if self._failed - self._held == 1 else (self._held + self._failed) // 2
        stride, self._stride = self._stride, 2 * self._stride
        if self._failed is None:
            assert self._held is not None
            return self._held + stride
        return None if self._failed == self._lowest else max(self._failed - stride, self._lowest)
