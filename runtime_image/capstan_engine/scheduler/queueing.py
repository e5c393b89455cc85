"""The waiting queue, and how long a refused client should stay away.

Knows no blocks and no limits. Surprising idea: ageing needs no clock. A level of priority is a head start of
`PRIORITY_LEVEL_S` seconds, and a late first token costs `LATE_HANDICAP_S`, so a rank is a moment: within that time the
other one goes first, and nothing that arrives later than that can overtake for ever.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from operator import attrgetter
from typing import Final

from capstan_engine.scheduler.request import Request

MIN_RETRY_AFTER_S: Final = 1.0
MAX_RETRY_AFTER_S: Final = 60.0

_by_rank = attrgetter("rank")


class WaitingQueue:
    """Requests in order of rank. A preempted request takes its old rank, which is the head of its class.

    They are found by it: who gets another rank has to leave the queue before.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def head(self) -> Request:
        """The next to be admitted. The queue must not be empty."""
        return self._requests[0]

    def last_untouched(self) -> Request | None:
        """The last of those for which nothing has been computed yet."""
        return next((r for r in reversed(self._requests) if r.first_scheduled_time is None), None)

    def precedes(self, request: Request) -> bool:
        """Whether the next to be admitted ranks before `request`."""
        return bool(self._requests) and self._requests[0].rank < request.rank

    def push(self, request: Request) -> None:
        insort(self._requests, request, key=_by_rank)

    def remove(self, request: Request) -> None:
        index = bisect_left(self._requests, request.rank, key=_by_rank)
        assert self._requests[index] is request, f"request {request.id} does not wait"
        del self._requests[index]


class CompletionRate:
    """Requests ended per second over the last `window` ends. Only ends while others wait say what the engine can do."""

    def __init__(self, window: int = 64) -> None:
        self._ends: deque[float] = deque(maxlen=window)

    def record(self, now: float, num_waiting: int) -> None:
        """A request has ended and `num_waiting` others wait."""
        if num_waiting:
            self._ends.append(now)
        else:
            self._ends.clear()

    def seconds_for(self, num_requests: int, now: float) -> float | None:
        """Time until this many more requests will have ended, or None when too few have ended to tell."""
        if len(self._ends) < 2 or now <= self._ends[0]:
            return None
        return num_requests * (now - self._ends[0]) / len(self._ends)


def retry_after_s(waiting: WaitingQueue, rate: CompletionRate, now: float) -> float:
    """When to try again at a full queue: the time in which what waits now will have been served, in whole seconds.

    Without enough completions to measure, as long again as the head of the queue has waited already.
    """
    estimate = rate.seconds_for(len(waiting), now)
    if estimate is None:
        estimate = max((now - request.arrival_time for request in waiting), default=0.0)
    return float(math.ceil(min(max(estimate, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)))
