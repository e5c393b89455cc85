"""Which processors each replica may run on.

A second replica adds capacity on one machine only if it does not compute on the first one's processors. So each takes
as many as its CPU share asks for, those with the fewest takers first; when there are more replicas than processors,
they share, and `takers` says so.
"""

from collections.abc import Iterable


class Processors:
    """Hands out the processors of this machine."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = tuple(sorted(numbers))
        self._taken: dict[str, tuple[int, ...]] = {}

    @property
    def numbers(self) -> tuple[int, ...]:
        """All that there are to give."""
        return self._numbers

    @property
    def taken(self) -> dict[str, tuple[int, ...]]:
        """Processors by taker."""
        return dict(self._taken)

    def takers(self, number: int) -> int:
        """How many share this processor."""
        return sum(number in numbers for numbers in self._taken.values())

    def take(self, taker: str, cpu_millicores: int) -> tuple[int, ...]:
        """Processors for a share of so many thousandths, rounded up to whole ones; the same ones when asked again."""
        if taker not in self._taken:
            count = min(len(self._numbers), -(-cpu_millicores // 1000))
            by_use = sorted(self._numbers, key=lambda number: (self.takers(number), number))
            self._taken[taker] = tuple(sorted(by_use[:count]))
        return self._taken[taker]

    def give_back(self, taker: str) -> None:
        self._taken.pop(taker, None)
