"""Whom to ask again when: who does not answer is asked more and more seldom, so that nobody waits for the silent.

Knows no HTTP and reads no clock. The surprising idea: what a silent one last failed with is its answer until it is
asked again, so that a fault is told in the same words however seldom it is looked at.
"""

from dataclasses import dataclass

_LONGEST_S = 10.0


@dataclass(frozen=True)
class _Silence:
    failures: int
    until: float
    error: str


class Patience:
    """Remembers who failed to answer. Keys are addresses: one that starts again elsewhere is asked at once."""

    def __init__(self, first_s: float = 1.0, *, free_failures: int = 2) -> None:
        """After `free_failures` failures in a row the pause is `first_s`; it doubles from there."""
        self._first_s = first_s
        self._free = free_failures
        self._silent: dict[str, _Silence] = {}

    def refuses(self, key: str, now: float) -> str | None:
        """Why it is not to be asked now; None when it is."""
        silence = self._silent.get(key)
        # No pause is longer: beyond that the clock was set back, and nobody is kept waiting for it to come round.
        waits = silence is not None and now < silence.until <= now + _LONGEST_S
        return silence.error if silence is not None and waits else None

    def failed(self, key: str, error: str, now: float) -> None:
        """It was asked and did not answer."""
        failures = self._silent[key].failures + 1 if key in self._silent else 1
        pause_s = min(self._first_s * 2.0 ** min(failures - self._free - 1, 16), _LONGEST_S)
        self._silent[key] = _Silence(failures, now + pause_s if failures > self._free else now, error)

    def answered(self, key: str) -> None:
        """It did."""
        self._silent.pop(key, None)

    def only(self, keys: set[str]) -> None:
        """Forget all others."""
        self._silent = {key: silence for key, silence in self._silent.items() if key in keys}
