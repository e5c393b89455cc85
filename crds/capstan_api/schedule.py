"""`spec.scaling.schedules`: windows of the calendar in which other bounds on the replicas hold.

Knows how a window is declared and what an expression or a zone must look like, and no moment: what is open when is
`capstan_operator.decide.scaling.schedule`'s. An API server judges the shape of an expression only; what it cannot see
(ranges, zones) is refused by the admission webhook, and where there is none, told in the condition
`ConfigurationValid`.
"""

from datetime import UTC, tzinfo
from functools import cache
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, StringConstraints

from capstan_api.contract import Contract, Name, Rule
from capstan_api.cron import Cron


@cache
def cron(expression: str) -> Cron:
    """The expression, read once. Raises `ValueError`."""
    return Cron.parse(expression)


@cache
def zone(name: str) -> tzinfo:
    """The time zone. Raises `ValueError` for one that this machine's database does not have."""
    if name == "UTC":
        # Known without any database.
        return UTC
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone known here; write one such as Europe/Berlin, or UTC") from None


def _is_cron(expression: str) -> str:
    cron(expression)
    return expression


def _is_zone(name: str) -> str:
    zone(name)
    return name


_Expression = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9A-Za-z*,/-]+( [0-9A-Za-z*,/-]+){4}$", min_length=9, max_length=128),
    AfterValidator(_is_cron),
]
_Zone = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_+/-]*$", min_length=1, max_length=64),
    AfterValidator(_is_zone),
]


class Schedule(Contract):
    """A window that begins again and again, and the bounds that hold in it instead of the usual ones."""

    name: Name = Field(description="Name of the schedule, as it appears in decisions.")
    cron: _Expression = Field(
        description="When the window begins: MINUTE HOUR DAY MONTH WEEKDAY, as in `0 8 * * MON-FRI`. The semantics are "
        "those of CronJob; a day counts when either day field names it, unless one of them is `*`."
    )
    time_zone: _Zone = Field(default="UTC", description="The wall clock that `cron` speaks of, an IANA name.")
    duration_seconds: int = Field(ge=60, le=2_678_400, description="How long the window is open: a minute to 31 days.")
    min_replicas: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="Fewest replicas while it is open; they are started so early that they are ready when it opens.",
    )
    max_replicas: int | None = Field(default=None, ge=1, le=10_000, description="Most replicas while it is open.")

    rules = (
        Rule(
            cel="has(self.minReplicas) || has(self.maxReplicas)",
            holds=lambda s: s.min_replicas is not None or s.max_replicas is not None,
            message="minReplicas or maxReplicas is required: a window without bounds changes nothing",
        ),
    )
