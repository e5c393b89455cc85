"""Days and weeks: by how much the load is about to rise, as it did at this hour before.

Knows requests per second in half hours, and nothing of replicas. One level is kept for each half hour of a week, as a
logarithm, because busy hours are a multiple of quiet ones and not so many requests more.

The surprising idea: it has to prove itself on every half hour that ends. Three guesses are made for it from the one
before: no change, the change of this hour on other days, the change of this hour a week ago. Only the share of the
changes that a guess has explained better than the first is believed; where there is no season that share is below
nothing, because a profile of noise adds its own, and the forecast is that all stays as it is.
"""

import math
from typing import Final

import numpy as np

from capstan_operator.decide.curve import Array, Curve
from capstan_operator.decide.values import Value

SLOT_S: Final = 1800.0
_SLOTS_A_DAY: Final = 48
_DAYS: Final = 7
_SLOTS_A_WEEK: Final = _DAYS * _SLOTS_A_DAY
# Of a half hour: with less of it seen, it says nothing.
_ENOUGH_SEEN: Final = 0.8
_NEWEST_SHARE: Final = 0.5
_HALF_LIFE_SLOTS: Final = 3.0 * _SLOTS_A_DAY
_ENOUGH_JUDGED: Final = 1.5 * _SLOTS_A_DAY
_LEAST_EXPLAINED: Final = 0.25
_LARGEST_RISE: Final = 2.0
_LOOKS_AHEAD: Final = 5


class Season(Value):
    """What is remembered: less than three kilobytes however long it has been learnt."""

    slot: int | None = None
    """The half hour that is being counted, numbered from the epoch."""
    requests: float = 0
    seconds: float = 0
    """That were seen of it."""
    last: float | None = None
    """Level of the half hour before; None after a gap."""
    week: Curve = b""
    """[336] Levels, the newest weighing half; NaN where none is known."""
    judged: float = 0
    """Half hours on which the guesses were judged, older ones weighing less."""
    still: float = 0
    """Mean squared error of the guess that nothing changes."""
    daily: float = 0
    weekly: float = 0

    def learn(self, requests: float, seconds: float, now: float) -> "Season":
        """The season after `requests` that came in the `seconds` before `now`."""
        slot = int(now // SLOT_S)
        ended = self if self.slot in (None, slot) else self._ended(slot)
        return ended.changed(slot=slot, requests=ended.requests + requests, seconds=ended.seconds + seconds)

    def _ended(self, slot: int) -> "Season":
        """The season after the half hour that was being counted; `slot` is the one that has begun instead."""
        assert self.slot is not None, "nothing was being counted"
        begun = self.changed(requests=0.0, seconds=0.0, last=None)
        if self.seconds < _ENOUGH_SEEN * SLOT_S:
            return begun
        index, week = self.slot % _SLOTS_A_WEEK, self._week()
        # One request more than there was: an empty half hour has a level too.
        level = math.log((self.requests + 1) / self.seconds)
        judged = begun if self.last is None else begun._judged(level, self.last, week, index)
        before = week[index]
        week[index] = level if math.isnan(before) else before + _NEWEST_SHARE * (level - before)
        last = level if slot == self.slot + 1 else None
        return judged.changed(week=week.astype("<f4").tobytes(), last=last)

    def _judged(self, level: float, last: float, week: Array, index: int) -> "Season":
        """The guesses' errors after a half hour of this level came after one of the `last` level."""
        day = _day(week)
        daily = float(day[index % _SLOTS_A_DAY] - day[(index - 1) % _SLOTS_A_DAY])
        weekly = float(week[index] - week[index - 1])
        if math.isnan(daily):
            # The first day has no other to be like.
            return self
        guesses = (0.0, daily, daily if math.isnan(weekly) else weekly)
        kept = 0.5 ** (1 / _HALF_LIFE_SLOTS)
        judged = kept * self.judged + 1
        still, by_day, by_week = (
            before + ((level - last - guess) ** 2 - before) / judged
            for before, guess in zip((self.still, self.daily, self.weekly), guesses, strict=True)
        )
        return self.changed(judged=judged, still=still, daily=by_day, weekly=by_week)

    @property
    def explained(self) -> float:
        """Share of the changes from one half hour to the next that the season has foretold; 0 until that is known."""
        if self.judged < _ENOUGH_JUDGED or self.still <= 0:
            return 0.0
        share = 1 - min(self.daily, self.weekly) / self.still
        return share if share >= _LEAST_EXPLAINED else 0.0

    def rise(self, now: float, seconds: float) -> float:
        """By what factor the load will rise at most within so many seconds; 1 where no season says so."""
        explained = self.explained
        if explained <= 0:
            return 1.0
        week = self._week()
        profile = np.tile(_day(week), _DAYS)
        if self.weekly < self.daily:
            profile = np.where(np.isnan(week), profile, week)
        # Levels hold in the middle of their half hours.
        places = (now + np.linspace(0, seconds, _LOOKS_AHEAD)) / SLOT_S % _SLOTS_A_WEEK - 0.5
        levels = np.interp(places, np.arange(_SLOTS_A_WEEK), profile, period=_SLOTS_A_WEEK)
        rise = float(np.nanmax(levels) - levels[0])
        return min(_LARGEST_RISE, math.exp(explained * rise)) if rise > 0 else 1.0

    def _week(self) -> Array:
        known = np.frombuffer(self.week, dtype="<f4").astype(np.float64)
        return known if len(known) == _SLOTS_A_WEEK else np.full(_SLOTS_A_WEEK, np.nan)


def _day(week: Array) -> Array:
    """[48] Mean levels of the half hours of a day; NaN where no day knows one."""
    days = week.reshape(_DAYS, _SLOTS_A_DAY)
    known = ~np.isnan(days)
    mean: Array = np.where(known.any(0), np.where(known, days, 0.0).sum(0) / np.maximum(1, known.sum(0)), np.nan)
    return mean
