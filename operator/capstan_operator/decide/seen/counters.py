"""Counters as a gateway keeps them: raw, cumulative, one set for each SLO class.

Knows neither gateways nor time. The surprising idea: a difference of two of them is the same type again, so that
windows are sums of differences and a counter that ran backwards is seen in one place, `minus`.
"""

from collections.abc import Iterable
from functools import lru_cache, reduce
from operator import attrgetter, le, lt, sub
from typing import Final

import numpy as np

from capstan_operator.decide.curve import Array, everywhere
from capstan_operator.decide.lifelong import lifelong
from capstan_operator.decide.values import Value

LARGEST_COUNT: Final = 1e15
"""More than anything real counts in a year: values beyond are damage or malice."""


def believable(*counts: float) -> bool:
    """Whether all are finite, not negative and not absurdly large."""
    # Neither NaN nor an infinity has a sum that is believable, and of what is not negative none exceeds the sum.
    if sum(counts) <= LARGEST_COUNT and min(counts, default=0) >= 0:
        return True
    return all(0 <= count <= LARGEST_COUNT for count in counts)


class Histogram(Value):
    """Cumulative counts: `counts[i]` observations were at most `bounds[i]` seconds; the last one counts all."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = (0.0,)

    @property
    def total(self) -> float:
        return self.counts[-1] if self.counts else 0.0

    @property
    def is_believable(self) -> bool:
        counts = self.counts
        return self.has_bounds and believable(counts[0], counts[-1]) and all(map(le, counts, counts[1:]))

    @property
    def has_bounds(self) -> bool:
        """Whether it has rising ones, and a count for each of them and one for all."""
        return len(self.counts) == len(self.bounds) + 1 and _can_be_bounds(self.bounds)

    def minus(self, earlier: "Histogram") -> "Histogram | None":
        """What came since `earlier`; None when the counter was reset or has other bounds."""
        if not earlier.bounds and not earlier.total:
            # There was no series of it yet.
            return self if self.is_believable else None
        if self.bounds != earlier.bounds or len(self.counts) != len(earlier.counts):
            return None
        counts = tuple(map(sub, self.counts, earlier.counts))
        difference = Histogram.made(bounds=self.bounds, counts=counts)
        return difference if difference.is_believable else None

    def plus(self, *others: "Histogram") -> "Histogram":
        """The sum of all with the bounds of the last that has observations."""
        summed = [histogram for histogram in (self, *others) if histogram.total] or [self]
        bounds = summed[-1].bounds
        counts = zip(*(histogram.counts for histogram in summed if histogram.bounds == bounds), strict=True)
        return Histogram.made(bounds=bounds, counts=tuple(map(sum, counts)))

    def above(self, seconds: float) -> float:
        """Observations longer than that; exact when it is one of the bounds, else those above the next one."""
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if bound >= seconds * (1 - 1e-9):
                return self.total - count
        return 0.0

    def quantile(self, share: float) -> float | None:
        """Seconds that `share` of the observations stay below, interpolated within a bucket; None without any.

        Observations above the last bound are reported as that bound: the smallest value that is certain.
        """
        if self.total <= 0 or not self.bounds:
            return None
        rank = share * self.total
        below, lower = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count >= rank and count > below:
                return lower + (bound - lower) * (rank - below) / (count - below)
            below, lower = count, bound
        return self.bounds[-1]


class ClassCounters(Value):
    """The gateway's counters of one SLO class."""

    arrived: float = 0
    arrived_tokens: float = 0
    """Prompt tokens of those that arrived, as well as a gateway can tell."""
    completed: float = 0
    rejected: float = 0
    failed: float = 0
    """Outcomes `failed` and `truncated` together."""
    slo_total: float = 0
    slo_good: float = 0
    prompt_tokens: float = 0
    output_tokens: float = 0
    ttft: Histogram = Histogram()
    tpot: Histogram = Histogram()

    @property
    def numbers(self) -> tuple[float, ...]:
        """Everything but the histograms, in the order of the fields."""
        return _COUNTED(self)

    @property
    def is_believable(self) -> bool:
        ttft, tpot = self.ttft, self.tpot
        return ttft.has_bounds and tpot.has_bounds and _can_be(_flat(self), len(ttft.bounds), len(tpot.bounds))

    def minus(self, earlier: "ClassCounters") -> "ClassCounters | None":
        """What came since `earlier`; None when any of the counters ran backwards."""
        ttfts, tpots = earlier.ttft.bounds, earlier.tpot.bounds
        if ttfts and tpots and _have_bounds((self,), ttfts, tpots):
            counted = _flat(self) - _flat(earlier)
            return _unflat(counted, ttfts, tpots) if _can_be(counted, len(ttfts), len(tpots)) else None
        ttft, tpot = self.ttft.minus(earlier.ttft), self.tpot.minus(earlier.tpot)
        difference = tuple(map(sub, self.numbers, earlier.numbers))
        if ttft is None or tpot is None or not believable(*difference):
            return None
        return _counters(difference, ttft, tpot)

    def plus(self, *others: "ClassCounters") -> "ClassCounters":
        ttfts, tpots = self.ttft.bounds, self.tpot.bounds
        if _have_bounds(others, ttfts, tpots):
            return _unflat(reduce(np.add, map(_flat, others), _flat(self)), ttfts, tpots)
        numbers = map(sum, zip(self.numbers, *(other.numbers for other in others), strict=True))
        ttft = self.ttft.plus(*(other.ttft for other in others))
        return _counters(numbers, ttft, self.tpot.plus(*(other.tpot for other in others)))


_COUNTS: Final = tuple(ClassCounters.model_fields)[:-2]
_COUNTED: Final = attrgetter(*_COUNTS)
_ZERO, _LARGEST = np.array(0.0), np.array(LARGEST_COUNT)


@lifelong
def _flat(counters: ClassCounters) -> Array:
    """All numbers of it one after the other: kept, because a window sums the same ones turn after turn."""
    return np.array((*counters.numbers, *counters.ttft.counts, *counters.tpot.counts), dtype=np.float64)


@lru_cache(maxsize=64)
def _can_be_bounds(bounds: tuple[float, ...]) -> bool:
    """Kept, because gateways tell the same ones in every look."""
    return believable(*bounds[:1], *bounds[-1:]) and all(map(lt, bounds, bounds[1:]))


def _have_bounds(all_of: Iterable[ClassCounters], ttft: tuple[float, ...], tpot: tuple[float, ...]) -> bool:
    """Whether these are the bounds of all of them."""
    return all(each.ttft.bounds == ttft and each.tpot.bounds == tpot for each in all_of)


def _can_be(flat: Array, num_ttft: int, num_tpot: int) -> bool:
    """Whether any counters could be so: believable, and with counts that rise over so many bounds."""
    if not everywhere((flat >= _ZERO) & (flat <= _LARGEST)):
        return False
    falls = flat[1:] < flat[:-1]
    first = len(_COUNTS)
    last = first + num_ttft + 1
    return b"\1" not in falls[first : last - 1].tobytes() + falls[last:].tobytes()


def _unflat(flat: Array, ttft: tuple[float, ...], tpot: tuple[float, ...]) -> ClassCounters:
    """Counters with these bounds."""
    numbers, last = flat.tolist(), len(_COUNTS) + len(ttft) + 1
    return _counters(
        numbers[: len(_COUNTS)],
        Histogram.made(bounds=ttft, counts=tuple(numbers[len(_COUNTS) : last])),
        Histogram.made(bounds=tpot, counts=tuple(numbers[last:])),
    )


def _counters(numbers: Iterable[float], ttft: Histogram, tpot: Histogram) -> ClassCounters:
    """Counters made of others: what has been judged once need not be validated again."""
    return ClassCounters.made(**dict(zip(_COUNTS, numbers, strict=True)), ttft=ttft, tpot=tpot)
