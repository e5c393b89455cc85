"""Windows of the calendar: when they are open, and what they make of the bounds on the replicas."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.scaling import Mode, Scaling
from capstan_api.schedule import Schedule
from capstan_operator.decide.scaling.bounds import bounds
from capstan_operator.decide.scaling.schedule import coming_window, open_window
from capstan_operator.decide.seen.observation import Allowance

BERLIN = "Europe/Berlin"
HOUR_S = 3600.0
STARTUP_S = 100.0


def schedule(
    cron: str = "0 8 * * *", hours: float = 1, zone: str = "UTC", name: str = "peak", **bound: int
) -> Schedule:
    bound = bound or {"min_replicas": 3}
    return Schedule(name=name, cron=cron, time_zone=zone, duration_seconds=int(hours * HOUR_S), **bound)


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def is_open(of: Schedule, at: float) -> bool:
    return open_window(of, at) is not None


def scaling(*schedules: Schedule, low: int = 1, high: int = 4, mode: Mode = Mode.AUTO) -> Scaling:
    return Scaling(mode=mode, min_replicas=low, max_replicas=high, schedules=list(schedules))


def between(of: Scaling, at: float, allowance: Allowance | None = None) -> tuple[int, int]:
    low, high = bounds(of, allowance, STARTUP_S, at)
    return low.replicas, high.replicas


def test_a_window_is_open_from_its_first_second_to_before_its_last() -> None:
    peak, start = schedule(), utc("2026-11-21 08:00")
    assert [is_open(peak, start + s) for s in (-1, 0, HOUR_S - 1, HOUR_S)] == [False, True, True, False]


def test_a_window_over_midnight_and_over_days_stays_open() -> None:
    weekend = schedule("0 20 * * FRI", hours=58)
    assert is_open(weekend, utc("2026-11-22 23:00"))
    assert not is_open(weekend, utc("2026-11-23 06:00"))


def test_the_wall_clock_is_that_of_the_zone_in_summer_and_in_winter() -> None:
    morning = schedule("0 8 * * *", zone=BERLIN)
    for opens in ("2026-07-01 06:00", "2026-12-01 07:00"):
        assert not is_open(morning, utc(opens) - 1)
        assert is_open(morning, utc(opens))


def test_a_beginning_in_the_hour_that_comes_twice_takes_place_once_and_lasts() -> None:
    # In Berlin the clock goes from 3:00 back to 2:00 on 25 October 2026, at 1:00 UTC.
    early = schedule("30 2 * * *", zone=BERLIN)
    begins = utc("2026-10-25 00:30")
    openings = [at for at in range(int(begins) - 7200, int(begins) + 7200, 60) if is_open(early, at)]
    assert openings == list(range(int(begins), int(begins) + 3600, 60))


def test_a_beginning_in_the_hour_that_is_left_out_is_not_lost() -> None:
    # In Berlin the clock goes from 2:00 on to 3:00 on 29 March 2026, at 1:00 UTC.
    early = schedule("30 2 * * *", zone=BERLIN)
    assert not is_open(early, utc("2026-03-29 01:29"))
    assert is_open(early, utc("2026-03-29 01:30"))


@given(
    st.sampled_from(["0 8 * * *", "30 2 * * SUN", "*/20 1-3 * * *", "15 0 1 * *", "0 12 13 * FRI"]),
    st.sampled_from(["UTC", BERLIN, "America/St_Johns", "Pacific/Apia", "Australia/Lord_Howe"]),
    st.integers(60, 3 * 86_400),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
)
def test_an_open_window_has_begun_at_a_moment_of_its_expression_and_has_not_ended(
    cron: str, zone: str, duration_s: int, naive: datetime
) -> None:
    peak = schedule(cron, hours=duration_s / HOUR_S, zone=zone)
    now = naive.replace(tzinfo=UTC).timestamp()
    window = open_window(peak, now)
    if window is None:
        return
    assert window.start <= now < window.end
    assert window.end - window.start == peak.duration_seconds
    local = datetime.fromtimestamp(window.start, ZoneInfo(zone))
    # One that was left out by a change of the clock shows an hour or half of one later.
    assert local.minute in {0, 15, 20, 30, 40}


def test_outside_of_every_window_the_resource_says_the_bounds() -> None:
    assert between(scaling(schedule(min_replicas=3)), utc("2026-11-21 12:00")) == (1, 4)


def test_min_replicas_holds_early_enough_to_be_ready_and_max_replicas_does_not() -> None:
    rising, falling = scaling(schedule(min_replicas=3)), scaling(schedule(max_replicas=2))
    begins = utc("2026-11-21 08:00")
    assert between(rising, begins - 10 * STARTUP_S) == (1, 4)
    assert between(rising, begins - STARTUP_S) == (3, 4)
    assert between(falling, begins - STARTUP_S) == (1, 4)
    assert between(falling, begins) == (1, 2)


def test_bounds_hold_to_the_very_end_also_where_the_next_window_is_near_or_the_window_is_short() -> None:
    always, short = schedule(hours=24, max_replicas=2), schedule(hours=1 / 60, min_replicas=3)
    begins = utc("2026-11-21 08:00")
    assert {between(scaling(always), begins + s) for s in (-STARTUP_S, -1, 0)} == {(1, 2)}
    assert between(scaling(short), begins - STARTUP_S) == (3, 4)
    assert coming_window(short, begins, STARTUP_S) is None
    assert between(scaling(schedule()), begins + HOUR_S - 1) == (3, 4)


def test_more_than_the_resource_allows_may_be_started_early() -> None:
    assert between(scaling(schedule(min_replicas=6, max_replicas=8)), utc("2026-11-21 08:00") - STARTUP_S) == (6, 6)
    assert between(scaling(schedule(min_replicas=6, max_replicas=8)), utc("2026-11-21 08:00")) == (6, 8)


def test_a_window_may_ask_for_less_than_the_resource() -> None:
    assert between(scaling(schedule(min_replicas=0), low=2), utc("2026-11-21 08:30")) == (0, 4)


def test_where_windows_overlap_the_highest_of_each_kind_holds() -> None:
    night, launch = schedule(max_replicas=2), schedule("30 8 * * *", name="launch", min_replicas=3)
    assert between(scaling(night, launch), utc("2026-11-21 08:10")) == (1, 2)
    assert between(scaling(night, launch), utc("2026-11-21 08:45")) == (3, 4)


def test_an_accelerator_budget_bounds_mode_auto_and_goes_before_every_minimum() -> None:
    left, at = Allowance(budget="h100", replicas=2, most=8), utc("2026-11-21 08:30")
    peak = schedule(min_replicas=3)
    assert between(scaling(peak), at, left) == (2, 2)
    assert between(scaling(peak, mode=Mode.SHADOW), at, left) == (3, 4)
    assert bounds(scaling(peak), left, STARTUP_S, at).high.because == "the accelerator budget h100 leaves 2"


def test_the_bound_tells_who_said_so() -> None:
    low, high = bounds(scaling(schedule(zone=BERLIN)), None, STARTUP_S, utc("2026-11-20 07:30"))
    assert (low.reason, low.because) == ("Schedule", "schedule peak asks for 3 from Fri 08:00 Europe/Berlin on")
    assert high.because == "schedule peak allows 4 since Fri 08:00 Europe/Berlin"


@pytest.mark.parametrize("measured", [None, 0.0, 600.0])
def test_how_early_follows_what_starts_were_measured_to_take(measured: float | None) -> None:
    begins, usual_s = utc("2026-11-21 08:00"), 120.0 if measured is None else measured
    of = scaling(schedule(min_replicas=3))
    assert bounds(of, None, measured, begins - usual_s - 60).low.replicas == 1
    assert bounds(of, None, measured, begins - usual_s).low.replicas == 3
