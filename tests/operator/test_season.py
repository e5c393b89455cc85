"""Days and weeks: a season is believed once it has foretold, and only by as much; nothing else is."""

import math
import random
from collections.abc import Callable

import pytest
from worlds import NOW, counters, deployment, engine_metrics, learnt, observation, replica, samples

from capstan_operator.decide import Decision, decide
from capstan_operator.decide.fleets.season import SLOT_S, Season

# A Thursday at midnight, as the epoch was.
START = 1_800_057_600.0 // 604_800 * 604_800
HOUR, DAY = 3600.0, 86_400.0


def taught(rate: Callable[[float], float], days: float, season: Season | None = None, since: float = START) -> Season:
    """After so many days of requests at this rate per second, looked at every ten minutes, with Poisson-like noise."""
    draw, season = random.Random(7), season or Season()
    for i in range(1, round(days * 144) + 1):
        now = since + 600 * i
        expected = 600 * rate(now - START)
        season = season.learn(max(0.0, draw.gauss(expected, math.sqrt(expected))), 600.0, now)
    return season


def daily(t: float) -> float:
    """Between 2 and 18 requests a second, the least at midnight."""
    return 10 - 8 * math.cos(2 * math.pi * t / DAY)


def test_a_day_like_the_days_before_is_foretold() -> None:
    season = taught(daily, days=5)

    assert season.explained > 0.7
    # At four in the morning the load rises by a tenth within twenty minutes, at four in the afternoon it falls.
    expected = daily(4 * HOUR + 1200) / daily(4 * HOUR)
    assert season.rise(START + 5 * DAY + 4 * HOUR, 1200) == pytest.approx(expected, rel=0.08)
    assert season.rise(START + 5 * DAY + 16 * HOUR, 1200) == 1.0


def test_nothing_is_foretold_before_it_has_proved_itself() -> None:
    season = taught(daily, days=2)
    assert [season.rise(START + 2 * DAY + HOUR * h, 1200) for h in range(24)] == [1.0] * 24


@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_a_load_without_a_season_is_left_alone(sigma: float) -> None:
    """Neither noise around one rate nor a rate that wanders has anything to foretell."""
    draw = random.Random(3)
    noise = [math.exp(draw.gauss(0, sigma)) for _ in range(2000)]
    walk = [0.0]
    for _ in range(2000):
        walk.append(0.99 * walk[-1] + draw.gauss(0, sigma))
    for rate in (lambda t: 10 * noise[int(t // 1800)], lambda t: 10 * math.exp(walk[int(t // 1800)])):
        season = Season()
        for week in range(3):
            season = taught(rate, days=7, season=season, since=START + 7 * week * DAY)
            assert season.explained == 0
            assert season.rise(START + 7 * (week + 1) * DAY, 1200) == 1.0


def test_a_quiet_weekend_is_not_taken_for_a_working_day() -> None:
    def working(t: float) -> float:
        # Saturday and Sunday are the third and fourth day from a Thursday.
        return 2.0 if int(t // DAY) % 7 in (2, 3) else daily(t)

    season = taught(working, days=22)

    assert season.weekly < season.daily
    friday, saturday = START + 22 * DAY, START + 23 * DAY
    assert season.rise(friday + 4 * HOUR, 1200) > 1.07
    assert season.rise(saturday + 4 * HOUR, 1200) < 1.02


def test_a_season_that_ends_is_forgotten() -> None:
    season = taught(daily, days=7)
    assert season.explained > 0.7
    season = taught(lambda t: 10.0, days=14, season=season, since=START + 7 * DAY)
    assert season.explained == 0


def test_half_hours_that_were_not_seen_teach_nothing() -> None:
    season = taught(daily, days=4)
    # The operator is away for six hours, and comes back in the middle of a half hour.
    back = season.learn(5.0, 2.0, START + 4 * DAY + 6 * HOUR + 900)
    later = back.learn(5.0, 2.0, START + 4 * DAY + 6 * HOUR + SLOT_S + 2)
    assert (later.week, later.judged, later.last) == (back.week, back.judged, None)


def test_it_survives_a_restart_and_stays_small() -> None:
    season = taught(daily, days=15)
    again = Season.from_json(season.to_json())
    assert again.to_json() == season.to_json()
    assert len(season.to_json()) < 3000
    at = START + 15 * DAY + 4 * HOUR
    assert again.rise(at, 1200) == season.rise(at, 1200) > 1.05


def test_the_fleet_is_sized_for_what_is_about_to_come() -> None:
    of = deployment(scaling={"batchLimits": {"mode": "Fixed"}})
    dawn = NOW - 4 * DAY - 4 * HOUR
    season = taught(lambda t: daily(t + START - dawn), days=4 + 4 / 24, since=dawn)

    def decided(season: Season) -> Decision:
        memory = learnt(of, season=season)
        for i in range(4):
            now = NOW + i
            metrics = engine_metrics(at=now, heartbeat=now, samples=samples(20, start=1 + 20 * i))
            seen = observation(of, replica(of, metrics=metrics), at=now, counted=counters(10 + 5 * i))
            decision = decide(of, seen, memory, now)
            memory = decision.memory
        return decision

    plain, foretold = decided(Season()), decided(season)
    assert plain.margin is not None
    assert foretold.margin is not None
    # Until a start was measured, it is taken to need two minutes.
    rise = season.rise(NOW + 3, 120)
    assert rise > 1.01
    assert foretold.margin == pytest.approx(rise * plain.margin)
    assert "more is usual" in foretold.said.message
    assert "more is usual" not in plain.said.message
    assert foretold.memory.season.requests == pytest.approx(season.requests + 15)
