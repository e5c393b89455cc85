"""Which windows of the calendar are open at a moment, and which are about to open.

Knows wall clocks and their changes, and no replicas. A window begins when the clock on the wall shows what its
expression says, for the first time where a clock is set back, and goes on for its duration in real seconds. A
beginning that is left out where a clock is set forward takes place as though it had not been.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from capstan_api.schedule import Schedule, cron, zone

_MINUTE = timedelta(minutes=1)


class Window(NamedTuple):
    """One opening of a schedule, in epoch seconds."""

    schedule: Schedule
    start: float
    end: float

    @property
    def opens(self) -> str:
        """Its beginning as people in its zone say it."""
        local = datetime.fromtimestamp(self.start, zone(self.schedule.time_zone))
        return f"{local:%a %H:%M} {self.schedule.time_zone}"


def open_window(schedule: Schedule, now: float) -> Window | None:
    """The newest window that has begun and not ended, None without one."""
    return _newest(schedule, now, after=now - schedule.duration_seconds)


def coming_window(schedule: Schedule, now: float, early_s: float) -> Window | None:
    """The last window that begins within `early_s` from now, None without one."""
    return _newest(schedule, now + early_s, after=now)


def _newest(schedule: Schedule, by: float, after: float) -> Window | None:
    """The newest window that begins later than `after` and no later than `by`."""
    expression, where = cron(schedule.cron), zone(schedule.time_zone)
    local = datetime.fromtimestamp(by, where)
    wall = local.replace(tzinfo=None)
    if local.fold:
        # The clock shows this hour for the second time: what began later in the first has begun.
        wall += (local.replace(fold=0).utcoffset() or timedelta()) - (local.utcoffset() or timedelta())
    since = datetime.fromtimestamp(after, where).date()
    while (found := expression.newest(wall, since)) is not None:
        start = found.replace(tzinfo=where).timestamp()
        if start <= by:
            return Window(schedule, start, start + schedule.duration_seconds) if start > after else None
        wall = found - _MINUTE
    return None
