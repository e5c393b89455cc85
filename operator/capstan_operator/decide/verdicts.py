"""The beginnings of last words by which a process tells that trying again would not help, and why.

Engines and fetchers write them, worlds pass them on, conditions and rollouts read them.
"""

from typing import Final

INFEASIBLE: Final = "infeasible:"
"""Of an engine that can never run as it was told to."""
SOURCE: Final = "source:"
"""Of a fetcher that cannot get its model."""
VERDICTS: Final = (INFEASIBLE, SOURCE)


def verdict_in(words: str) -> str | None:
    """The verdict in a line that a process wrote, without what stands before it; None without one."""
    begins = [words.index(verdict) for verdict in VERDICTS if verdict in words]
    return words[min(begins) :] if begins else None
