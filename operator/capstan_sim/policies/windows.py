"""The one thing that nearly all autoscalers share: a target falls only to the highest advice of a recent window.

Knows nothing of loads. The surprising idea: the window is born full of the initial count, so that a controller that
has just started does not take its own ignorance for an idle fleet.
"""

from collections import deque


class DownWindow:
    """Scale-down stabilisation over the last `length_s` seconds, both ends included."""

    def __init__(self, length_s: float, initial: int) -> None:
        self._length_s = length_s
        # Times rise and advice falls from left to right: what a later, higher advice hides can never be the maximum.
        self._advice: deque[tuple[float, int]] = deque([(0.0, initial)])

    def settle(self, now: float, advice: int, current: int) -> int:
        """The target: `advice` when it is not below `current`, else the window's highest advice, at most `current`."""
        while self._advice and self._advice[-1][1] <= advice:
            self._advice.pop()
        self._advice.append((now, advice))
        while self._advice[0][0] < now - self._length_s:
            self._advice.popleft()
        return advice if advice >= current else min(current, self._advice[0][1])
