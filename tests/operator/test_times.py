"""Moments as the Kubernetes API writes them."""

from datetime import UTC, datetime

import pytest

from capstan_operator.decide.times import epoch_s, rfc3339


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (0.0, "1970-01-01T00:00:00Z"),
        (951_782_399.9, "2000-02-28T23:59:59Z"),
        (951_782_400.0, "2000-02-29T00:00:00Z"),
        (1_800_000_000.5, "2027-01-15T08:00:00Z"),
        (-0.5, "1969-12-31T23:59:59Z"),
    ],
)
def test_a_moment_is_written_to_the_second(moment: float, written: str) -> None:
    assert rfc3339(moment) == written


def test_every_hour_and_day_is_that_of_the_calendar() -> None:
    for moment in range(1_700_000_000, 1_800_000_000, 86_400 * 7 + 3_607):
        assert rfc3339(moment) == datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert epoch_s(rfc3339(moment)) == moment
