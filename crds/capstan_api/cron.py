"""A five-field cron expression as a value: which days it names, and its newest moment before another one.

Knows wall-clock time only; zones, durations and what begins at these moments are its readers' business. The semantics
are those of Kubernetes' CronJob: names of months and weekdays, 7 as well as 0 for Sunday, `N/STEP` up to the field's
end, and a day counts when *either* day field names it, unless one of them is a plain `*`.

The surprising idea: nothing counts minutes. A moment is found by stepping over days and picking the newest hour and
minute of the first one that is named, so that a yearly expression costs no more than one that is due every minute.
"""

from bisect import bisect_right
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
# Name, lowest and highest value, and words for values from the lowest on.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _WEEKDAYS),
)
_MOST_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True)
class Cron:
    """Sorted values of each field. `weekdays` counts from Sunday, which is 0."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    is_either: bool
    """Whether one of the two day fields is enough: both name some days only."""

    @classmethod
    def parse(cls, text: str) -> "Cron":
        """Read `MINUTE HOUR DAY MONTH WEEKDAY`. Raises `ValueError`, which names the field and the remedy."""
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise ValueError(f"{text!r} has {len(parts)} fields; MINUTE HOUR DAY MONTH WEEKDAY are needed")
        minutes, hours, days, months, weekdays = (
            _values(part, *field) for part, field in zip(parts, _FIELDS, strict=True)
        )
        is_either = parts[2] != "*" and parts[4] != "*"
        if not is_either and min(days) > max(_MOST_DAYS[month - 1] for month in months):
            raise ValueError(f"{text!r} names no day that there is: no such month has {min(days)} days")
        return cls(
            minutes=tuple(sorted(minutes)),
            hours=tuple(sorted(hours)),
            days=days,
            months=months,
            weekdays=frozenset(day % 7 for day in weekdays),
            is_either=is_either,
        )

    def newest(self, by: datetime, since: date) -> datetime | None:
        """Its newest moment that is not after the wall clock's `by`, on no earlier day than `since`; None without."""
        day, end = by.date(), by.time()
        while day >= since:
            if self._names(day) and (found := self._newest_time(end)) is not None:
                return datetime.combine(day, found)
            day, end = day - timedelta(days=1), time.max
        return None

    def _names(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_date, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return (by_date or by_week) if self.is_either else (by_date and by_week)

    def _newest_time(self, by: time) -> time | None:
        index = bisect_right(self.hours, by.hour) - 1
        if index >= 0 and self.hours[index] == by.hour:
            minute = bisect_right(self.minutes, by.minute) - 1
            if minute >= 0:
                return time(by.hour, self.minutes[minute])
            index -= 1
        return time(self.hours[index], self.minutes[-1]) if index >= 0 else None


def _values(text: str, name: str, low: int, high: int, words: tuple[str, ...]) -> frozenset[int]:
    values: set[int] = set()
    for item in text.split(","):
        span, slash, step_text = item.partition("/")
        begin_text, dash, end_text = span.partition("-")
        step = _number(step_text, f"step of the {name}", 1, high) if slash else 1
        if span == "*":
            begin, end = low, min(high, 6) if words is _WEEKDAYS else high
        else:
            begin = _number(begin_text, name, low, high, words)
            end = _number(end_text, name, low, high, words) if dash else high if slash else begin
        if end < begin:
            raise ValueError(f"{name}: {item!r} ends before it begins; write two ranges, separated by a comma")
        values.update(range(begin, end + 1, step))
    return frozenset(values)


def _number(text: str, name: str, low: int, high: int, words: tuple[str, ...] = ()) -> int:
    if text.upper() in words:
        return low + words.index(text.upper())
    # More digits than any field has are not worth reading.
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and low <= int(text) <= high):
        also = f" or {words[0]} to {words[-1]}" if words else ""
        raise ValueError(f"{name}: {text!r} is not a number from {low} to {high}{also}")
    return int(text)
