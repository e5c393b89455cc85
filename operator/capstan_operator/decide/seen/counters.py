"""Counters as a gateway keeps them: raw, cumulative, one set for each SLO class.

Knows neither gateways nor time. The surprising idea: a difference of two of them is the same type again, so that
windows are sums of differences and a counter that ran backwards is seen in one place, `minus`.
"""

from collections.abc import Iterable
from operator import attrgetter, le, lt, sub
from typing import Final

import numpy as np

from capstan_operator.decide.curve import Array
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
        bounds = self.bounds
        if len(self.counts) != len(bounds) + 1 or not believable(*bounds[:1], *bounds[-1:]):
            return False
        return all(map(lt, bounds, bounds[1:])) and _are_rising(self.counts)

    def minus(self, earlier: "Histogram") -> "Histogram | None":
        """What came since `earlier`, which has been believed; None when the counter was reset or has other bounds."""
        if not earlier.bounds and not earlier.total:
            # There was no series of it yet.
            return self if self.is_believable else None
        if self.bounds != earlier.bounds or len(self.counts) != len(earlier.counts):
            return None
        counts = tuple(map(sub, self.counts, earlier.counts))
        return Histogram.made(bounds=self.bounds, counts=counts) if _are_rising(counts) else None

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


def _are_rising(counts: tuple[float, ...]) -> bool:
    return believable(counts[0], counts[-1]) and all(map(le, counts, counts[1:]))


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
        return believable(*self.numbers) and self.ttft.is_believable and self.tpot.is_believable

    def minus(self, earlier: "ClassCounters") -> "ClassCounters | None":
        """What came since `earlier`; None when any of the counters ran backwards."""
        ttft, tpot = self.ttft.minus(earlier.ttft), self.tpot.minus(earlier.tpot)
        difference = tuple(map(sub, self.numbers, earlier.numbers))
        if ttft is None or tpot is None or not believable(*difference):
            return None
        return _counters(difference, ttft, tpot)

    def plus(self, *others: "ClassCounters") -> "ClassCounters":
        ttfts, tpots = self.ttft.bounds, self.tpot.bounds
        if all(each.ttft.bounds == ttfts and each.tpot.bounds == tpots for each in others):
            return _unflat(np.add.reduce([_flat(each) for each in (self, *others)]).tolist(), ttfts, tpots)
        numbers = map(sum, zip(self.numbers, *(other.numbers for other in others), strict=True))
        ttft = self.ttft.plus(*(other.ttft for other in others))
        return _counters(numbers, ttft, self.tpot.plus(*(other.tpot for other in others)))


NOTHING: Final = ClassCounters()
_COUNTS: Final = ClassCounters.field_names[:-2]
_COUNTED: Final = attrgetter(*_COUNTS)


@lifelong
def _flat(counters: ClassCounters) -> Array:
    """All numbers of it one after the other: kept, because a window sums the same ones turn after turn."""
    return np.array((*counters.numbers, *counters.ttft.counts, *counters.tpot.counts), dtype=np.float64)


def _unflat(numbers: list[float], ttft: tuple[float, ...], tpot: tuple[float, ...]) -> ClassCounters:
    """Counters with these bounds."""
    last = len(_COUNTS) + len(ttft) + 1
    return _counters(
        numbers[: len(_COUNTS)],
        Histogram.made(bounds=ttft, counts=tuple(numbers[len(_COUNTS) : last])),
        Histogram.made(bounds=tpot, counts=tuple(numbers[last:])),
    )


def _counters(numbers: Iterable[float], ttft: Histogram, tpot: Histogram) -> ClassCounters:
    """Counters made of others: what has been judged once need not be validated again."""
    return ClassCounters.made(**dict(zip(_COUNTS, numbers, strict=True)), ttft=ttft, tpot=tpot)
