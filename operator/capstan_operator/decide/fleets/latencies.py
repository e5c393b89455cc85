"""What TTFT and TPOT every virtual fleet gives: of the requests that came, those above each of a few bounds.

Kept beside the bank's misses and fed by the same queues, so that it is no second opinion. Newer requests weigh more:
a count halves within half the look-back, and so one set of counts does where slots would take twenty. Knows no
objective. The surprising idea: bounds lie a fixed ratio apart, and quantiles are interpolated on that scale, because
what a reader wants to know of a latency is its order and its first digit.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from capstan_operator.decide.curve import NUM_BYTES, Array, Curve, curve
from capstan_operator.decide.lifelong import lifelong
from capstan_operator.decide.values import Value

_NUM_BOUNDS, _RATIO = 16, 1.75
_POWERS: Final[Array] = np.power(_RATIO, np.arange(_NUM_BOUNDS, dtype=np.float64))
TTFT_S: Final[Array] = 0.02 * _POWERS
TPOT_S: Final[Array] = 0.001 * _POWERS
_TTFT_S: Final[Sequence[float]] = TTFT_S.tolist()
_TPOT_S: Final[Sequence[float]] = TPOT_S.tolist()
TOLD: Final = slice(1, None, 4)
"""The L of all fleets whose latencies are told: each a sixth larger than the one before. The real one has no size."""
_LEAST_REQUESTS: Final = 1.0
SAMPLED_EVERY_S: Final = 5.0
"""Nothing is decided by latencies. Those of one turn in these seconds tell as much as those of all turns."""


class Quantiles(Value):
    """In seconds, interpolated; what is longer than the largest bound is that bound."""

    median_s: float
    tail_s: float
    percentile: float
    """Of `tail_s`: the one that the class's objective names."""


class Latencies(Value):
    """Counts of each class, in the bank's order, and of each bound and fleet."""

    requests: tuple[float, ...] = ()
    ttft: tuple[Curve, ...] = ()
    """Of each class [G, L] requests above the bounds `TTFT_S`."""
    tpot: Curve = b""
    """[G, L] requests of all classes above the bounds `TPOT_S`."""

    def are_due(self, *, num_classes: int, seconds: float, now: float) -> bool:
        """Whether those of a turn of `seconds` until `now` are to be counted."""
        is_next = now // SAMPLED_EVERY_S != (now - seconds) // SAMPLED_EVERY_S
        return is_next or len(self.requests) != num_classes

    def after(self, requests: Sequence[float], ttft: Iterable[Array], tpot: Array, kept: float) -> "Latencies":
        """The counts after `requests` of each class, of which shares `ttft` [K, G, L] and `tpot` [G, L] were above the
        bounds; `kept` is the share of the older ones that still counts.
        """
        before = self.ttft if len(self.ttft) == len(requests) else (b"",) * len(requests)
        older = self.requests if len(self.requests) == len(requests) else (0.0,) * len(requests)
        return Latencies.made(
            requests=tuple(kept * a + b for a, b in zip(older, requests, strict=True)),
            ttft=tuple(_added(raw, kept, num * rows) for raw, num, rows in zip(before, requests, ttft, strict=True)),
            tpot=_added(self.tpot, kept, sum(requests) * tpot),
        )

    def of_ttft(self, k: int, sizes: Array, fleet: float, share: float) -> Quantiles | None:
        """TTFT of the class at a fleet of this size; None without requests. `share` is that of the tail."""
        if k >= len(self.requests) or self.requests[k] < _LEAST_REQUESTS:
            return None
        return _quantiles(_TTFT_S, _at(self.ttft[k], sizes, fleet), self.requests[k], share)

    def of_tpot(self, sizes: Array, fleet: float, share: float) -> Quantiles | None:
        """TPOT of all classes, likewise: sequences of all classes share their steps."""
        if sum(self.requests) < _LEAST_REQUESTS:
            return None
        return _quantiles(_TPOT_S, _at(self.tpot, sizes, fleet), sum(self.requests), share)


def _added(raw: Curve, kept: float, new: Array) -> Curve:
    """The `new` counts [G, L] and a share of those before them, unless those are of another number of fleets."""
    if len(raw) != NUM_BYTES * new.size:
        return curve(new)
    return curve(new + np.multiply(np.frombuffer(raw, dtype="<f4").reshape(new.shape), kept, dtype=np.float64))


def _at(raw: bytes, sizes: Array, fleet: float) -> list[float]:
    """[G] The counts of a fleet between two sizes."""
    told = _logarithms(sizes)
    if len(raw) != 4 * _NUM_BOUNDS * len(told):
        return [0.0] * _NUM_BOUNDS
    first, part = _place(told, math.log(max(fleet, 1e-9)))
    columns = np.frombuffer(raw, dtype="<f4").reshape(_NUM_BOUNDS, len(told))[:, first : first + 2]
    return [a + part * (b - a) for a, b in columns[:, [0, -1]].astype(np.float64).tolist()]


@lifelong
def _logarithms(sizes: Array) -> tuple[float, ...]:
    """Those of the fleets that are told."""
    return tuple(np.log(sizes[TOLD]).tolist())


def _place(rising: Sequence[float], value: float) -> tuple[int, float]:
    """The last of the values that is not above this one, and how far it is from there to the next, as a share."""
    if value <= rising[0]:
        return 0, 0.0
    low = bisect_right(rising, value) - 1
    if low >= len(rising) - 1:
        return len(rising) - 1, 0.0
    return low, (value - rising[low]) / (rising[low + 1] - rising[low])


def _quantiles(bounds: Sequence[float], above: Sequence[float], requests: float, share: float) -> Quantiles:
    return Quantiles.made(
        median_s=_quantile(bounds, above, requests, 0.5),
        tail_s=_quantile(bounds, above, requests, share),
        percentile=100 * share,
    )


def _quantile(bounds: Sequence[float], above: Sequence[float], requests: float, share: float) -> float:
    """The latency that `share` of the requests stay below."""
    permitted = (1 - share) * requests
    if above[-1] > permitted:
        return bounds[-1]
    index = next(i for i, count in enumerate(above) if count <= permitted)
    over, under = above[index - 1] if index else requests, above[index]
    part = (over - permitted) / (over - under) if over > under else 1.0
    return float(bounds[index] * _RATIO ** (part - 1))
