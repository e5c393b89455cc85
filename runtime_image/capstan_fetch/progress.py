"""How far the fetcher has come, for the log and for `GET /admin/startup`.

A counter and a sentence; it knows neither network nor disk. Bytes that an earlier attempt left behind count as done but
not as speed.
"""

from collections import deque
from collections.abc import Callable
from threading import Lock
from time import monotonic, time
from typing import Final

from capstan_api.startup import StartupPhase, StartupReport

_WINDOW_S: Final = 15.0
_LONGEST_TOLD_S: Final = 48 * 3600.0
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


class Progress:
    """The state of one fetch. May be told of bytes from several threads."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self.begin(StartupPhase.FETCHING, message="asking the source for its files")

    def begin(self, phase: StartupPhase, total_bytes: int = 0, done_bytes: int = 0, message: str = "") -> None:
        """Start a phase. Until the total is known the report says `message` instead of amounts."""
        self.phase = phase
        self.total_bytes = total_bytes
        self.done_bytes = done_bytes
        self._message = message
        self._since = time()
        self._samples: deque[tuple[float, int]] = deque([(self._clock(), done_bytes)])

    def add(self, num_bytes: int) -> None:
        """Bytes done, or undone when negative."""
        with self._lock:
            self.done_bytes += num_bytes

    def rate(self) -> float:
        """Bytes/s over the last seconds."""
        now = self._clock()
        self._samples.append((now, self.done_bytes))
        while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        return max(0.0, (self.done_bytes - before) / (now - then)) if now > then else 0.0

    def sentence(self) -> str:
        """As in `3.2 of 16.1 GB, 85 MB/s, 2 min left`."""
        if self._message or not self.total_bytes:
            return self._message
        rate = self.rate()
        left = (self.total_bytes - self.done_bytes) / rate if rate else None
        # Beyond that it says more about the first second than about the rest.
        eta = f", {duration(left)} left" if left is not None and 1 <= left < _LONGEST_TOLD_S else ""
        return f"{amount_of(self.done_bytes, self.total_bytes)}, {amount(rate)}/s{eta}"

    def report(self) -> StartupReport:
        return StartupReport(
            phase=self.phase,
            done_bytes=max(0, self.done_bytes),
            total_bytes=self.total_bytes,
            message=self.sentence(),
            since=self._since,
        )


def amount(num_bytes: float) -> str:
    """As in `16.1 GB`, `85 MB`, `512 B`."""
    power = _power(num_bytes)
    return f"{_figure(num_bytes, power)} {_UNITS[power]}"


def amount_of(part: float, whole: float) -> str:
    """As in `3.2 of 16.1 GB`: both in the unit of the whole."""
    power = _power(whole)
    return f"{_figure(part, power)} of {amount(whole)}"


def duration(seconds: float) -> str:
    """As in `40 s`, `2 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _power(num_bytes: float) -> int:
    return max(index for index in range(len(_UNITS)) if index == 0 or num_bytes >= 1000**index)


def _figure(num_bytes: float, power: int) -> str:
    value = num_bytes / 1000**power
    return f"{value:.0f}" if power == 0 or value >= 99.95 else f"{value:.1f}"
