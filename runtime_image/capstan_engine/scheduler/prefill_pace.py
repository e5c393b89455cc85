"""How long prompts take to compute, as they just did: what tells in time that a first token will be late.

Knows no request and no clock. The surprising idea: only steps that prompts have filled up are asked, because one that
had room to spare says nothing of what is possible; and of the last of them only the fastest, so that a hiccup makes
nobody late.
"""

from collections import deque
from typing import Final

_REMEMBERED_STEPS: Final = 4
# Prompts share steps, so that a new one begins with a part of its first step and waits for the whole of its last one.
_SHARED_STEPS: Final = 0.5


class PrefillPace:
    """Learns from steps whose token budget was used up."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=_REMEMBERED_STEPS)
        self._step_s, self._tokens = 0.0, 1

    def learn(self, num_tokens: int, seconds: float) -> None:
        """A full step took so long, of which prompts had `num_tokens` (at least 1)."""
        self._steps.append((seconds / num_tokens, seconds, num_tokens))
        _, self._step_s, self._tokens = min(self._steps)

    def seconds_for(self, num_tokens: int, num_in_flight: int = 0) -> float:
        """From now until the first token, if all steps but those in flight compute nothing but these prompt tokens
        (and the decodes that they always do). 0 until a step was full: what is not known holds nobody for late.
        """
        return (num_tokens / self._tokens + _SHARED_STEPS + num_in_flight) * self._step_s
