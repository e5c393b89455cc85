"""Moments as the Kubernetes API writes them."""

from datetime import UTC, datetime
from functools import lru_cache
from math import floor


def rfc3339(moment: float) -> str:
    """Epoch seconds as UTC to the second, such as 2026-01-31T12:00:00Z."""
    minute, second = divmod(floor(moment), 60)
    return f"{_minute(minute)}:{second:02}Z"


@lru_cache(maxsize=1024)
def _minute(number: int) -> str:
    """Kept, for a turn tells many moments of few minutes."""
    return datetime.fromtimestamp(60 * number, UTC).strftime("%Y-%m-%dT%H:%M")


def epoch_s(timestamp: str) -> float:
    """The inverse of `rfc3339`. Raises `ValueError` for what is not a moment."""
    return datetime.fromisoformat(timestamp).timestamp()
