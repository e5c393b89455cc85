"""Moments as the Kubernetes API writes them."""

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=1024)
def rfc3339(moment: float) -> str:
    """Epoch seconds as UTC to the second, such as 2026-01-31T12:00:00Z. Kept, for most are told in many turns."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").removesuffix("+00:00") + "Z"


def epoch_s(timestamp: str) -> float:
    """The inverse of `rfc3339`. Raises `ValueError` for what is not a moment."""
    return datetime.fromisoformat(timestamp).timestamp()
