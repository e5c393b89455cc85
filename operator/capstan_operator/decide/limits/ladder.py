"""The values that a limit may have: rungs a fixed percentage apart, from the envelope's top to its bottom.

Knows no reason to move. The surprising idea: one adjustment moves one rung, and only when the ideal value has left the
rung by a margin, so that a steady world leaves the limits alone.
"""

from functools import lru_cache
from typing import Final

LARGEST_MARGIN: Final = 0.08


@lru_cache(maxsize=1024)
def ladder(top: int, bottom: int, step_percent: int) -> tuple[int, ...]:
    """Falling rungs from `top` to `bottom`, each `step_percent` below the one above, and at least one."""
    rungs = [top]
    while rungs[-1] > bottom:
        rungs.append(max(bottom, min(rungs[-1] - 1, round(rungs[-1] / (1 + step_percent / 100)))))
    return tuple(rungs)


def move(current: int, ideal: float, rungs: tuple[int, ...], step_percent: int) -> int:
    """The rung after one adjustment: one up or down, or `current` while `ideal` is within the margin around it."""
    margin = min(LARGEST_MARGIN, step_percent / 300)
    above = min((r for r in rungs if r > current), default=current)
    below = max((r for r in rungs if r < current), default=current)
    if ideal < current * (1 - margin):
        return below
    # Nothing lies above the top: reaching it has to be enough.
    return above if ideal >= min(above * (1 + margin), rungs[0]) else current


def towards(current: int, goal: int, rungs: tuple[int, ...]) -> int:
    """The rung after one adjustment on the way to a value that is known to be good, without any margin."""
    if goal > current:
        return min(goal, min((r for r in rungs if r > current), default=goal))
    return max(goal, max((r for r in rungs if r < current), default=goal))
