"""What gateway and engines would have counted of a simulation until now, by SLO class and by pod.

Kept from look to look, because a look only adds what has come since.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from operator import add
from typing import NamedTuple

from capstan_api.metrics import Gateway as Series
from capstan_operator.decide.seen.counters import ClassCounters, Histogram
from capstan_sim.book import Book
from capstan_sim.policy import Objective


class Served(NamedTuple):
    """An engine's own count of the requests that ended on it: all, and those that met their thresholds."""

    total: int = 0
    good: int = 0
    ttft_good: int = 0
    tpot_good: int = 0


class Counters:
    """The gateway's counters of all classes, and the engines' of all pods. One process runs in a pod at a time."""

    def __init__(self, book: Book, slos: Sequence[Objective]) -> None:
        self._book = book
        self._counts = [_ClassCounts(slo, slos) for slo in slos]
        self._num_arrived = self._num_first = self._num_done = 0
        self._served: dict[int, Served] = {}

    def served(self, pod: int) -> Served:
        """What has ended on the process in this pod."""
        return self._served.get(pod, Served())

    def restarted(self, pod: int) -> None:
        """Another process runs in this pod."""
        self._served.pop(pod, None)

    def read(self) -> list[ClassCounters]:
        """Count what has come since; the gateway's counters of each class, in their order."""
        book, counts = self._book, self._counts
        for request in range(self._num_arrived, book.num_arrived):
            of_class = counts[book.slo_class[request]]
            of_class.arrived += 1
            of_class.arrived_tokens += book.prompt[request]
        for index in range(self._num_first, len(book.first_times)):
            counts[book.slo_class[book.first_requests[index]]].first_token(book.first_ttfts[index])
        for index in range(self._num_done, len(book.done_times)):
            request = book.done_requests[index]
            good = counts[book.slo_class[request]].ended(book, request, book.done_tpots[index])
            pod = book.pod[request]
            self._served[pod] = Served(*map(add, self.served(pod), good))
        self._num_arrived = book.num_arrived
        self._num_first, self._num_done = len(book.first_times), len(book.done_times)
        return [of_class.counters() for of_class in counts]


class _ClassCounts:
    """The gateway's counters of one SLO class."""

    def __init__(self, slo: Objective, all_slos: Sequence[Objective]) -> None:
        self.arrived = self.arrived_tokens = 0
        self._slo = slo
        self._completed = self._good = self._prompt_tokens = self._output_tokens = 0
        self._ttft = _Buckets(Series.TTFT.bounds(tuple(s.ttft_s for s in all_slos if s.ttft_s < float("inf"))))
        self._tpot = _Buckets(Series.TPOT.bounds(tuple(s.tpot_s for s in all_slos if s.tpot_s < float("inf"))))

    def first_token(self, ttft_s: float) -> None:
        self._ttft.observe(ttft_s)

    def ended(self, book: Book, request: int, tpot_s: float) -> Served:
        self._completed += 1
        self._prompt_tokens += book.prompt[request]
        self._output_tokens += book.output[request]
        if book.output[request] > 1:
            self._tpot.observe(tpot_s)
        ttft_s = book.first[request] - book.arrival[request]
        ttft_good, tpot_good = ttft_s <= self._slo.ttft_s, tpot_s <= self._slo.tpot_s
        self._good += ttft_good and tpot_good
        return Served(1, ttft_good and tpot_good, ttft_good, tpot_good)

    def counters(self) -> ClassCounters:
        return ClassCounters.made(
            arrived=float(self.arrived),
            arrived_tokens=float(self.arrived_tokens),
            completed=float(self._completed),
            slo_total=float(self._completed),
            slo_good=float(self._good),
            prompt_tokens=float(self._prompt_tokens),
            output_tokens=float(self._output_tokens),
            ttft=self._ttft.histogram(),
            tpot=self._tpot.histogram(),
        )


class _Buckets:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1

    def histogram(self) -> Histogram:
        return Histogram.made(bounds=self._bounds, counts=tuple(map(float, accumulate(self._counts))))
