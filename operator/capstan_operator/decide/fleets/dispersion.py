"""How much more unevenly prompt tokens come than independent requests would bring them.

Of independent requests (Poisson), each with I tokens, the rates of two successive turns of h₁ and h₂ seconds differ
with a variance of λ·E[I²]·(1/h₁ + 1/h₂). Here the mean distance between them is held against that: its square is the
index of dispersion of the work that comes. Squared after the mean and not before it, because a single leap, which the
fluid queues see anyway, would outweigh everything else. Differences of neighbours, because a rate that rises by and by
is no dispersion. Clients that come in flocks, retries and batches have indices of 5 and more, and queues grow with it
as with the variance of prompts (Heffes and Lucantoni, 1986; Fendick and Whitt, 1989).
"""

from math import pi, sqrt
from typing import Final

from capstan_operator.decide.values import Value

_HALF_LIFE_S: Final = 300.0
# Independence is assumed at first, as if so many turns had shown it.
_ASSUMED_TURNS: Final = 10.0
# The mean of |z| for a standard normal z.
_NORMAL: Final = sqrt(2 / pi)


class Dispersion(Value):
    """Of the arrivals of the last minutes."""

    tokens: float = 0
    """Of the newest turn, which took `seconds`."""
    seconds: float = 0
    distance: float = 0
    """Sum over turns of the distance from the turn before, in standard deviations of independent requests."""
    turns: float = 0

    def after(self, tokens: float, seconds: float, long_prompt: float) -> "Dispersion":
        """After one more turn. `long_prompt` is E[I²]/E[I] tokens."""
        distance, turns = self.distance, self.turns
        together = self.tokens + tokens
        if self.seconds > 0 and seconds > 0 and together > 0:
            kept = 0.5 ** (seconds / _HALF_LIFE_S)
            variance = long_prompt * together / (self.seconds + seconds) * (1 / self.seconds + 1 / seconds)
            distance = kept * distance + abs(tokens / seconds - self.tokens / self.seconds) / sqrt(variance)
            turns = kept * turns + 1
        return Dispersion.made(tokens=tokens, seconds=seconds, distance=distance, turns=turns)

    @property
    def index(self) -> float:
        """1 for independent requests, and never less: that they came evenly until now is no promise."""
        mean = (self.distance + _ASSUMED_TURNS * _NORMAL) / (self.turns + _ASSUMED_TURNS)
        return max(1.0, (mean / _NORMAL) ** 2)
