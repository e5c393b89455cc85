"""Moments as the Kubernetes API writes them."""

import math
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Final

_DAY_S: Final = 86_400
_EPOCH: Final = date(1970, 1, 1)


@lru_cache(maxsize=1024)
def rfc3339(moment: float) -> str:
    """Epoch seconds as UTC to the second, such as 2026-01-31T12:00:00Z."""
    days, seconds = divmod(math.floor(moment), _DAY_S)
    minutes, second = divmod(seconds, 60)
    return f"{_day(days)}T{minutes // 60:02}:{minutes % 60:02}:{second:02}Z"


def epoch_s(timestamp: str) -> float:
    """The inverse of `rfc3339`. Raises `ValueError` for what is not a moment."""
    return datetime.fromisoformat(timestamp).timestamp()


@lru_cache
def _day(days: int) -> str:
    return (_EPOCH + timedelta(days)).isoformat()
