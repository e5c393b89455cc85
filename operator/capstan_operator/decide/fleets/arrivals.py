"""What came, turn by turn, until the virtual fleets get it.

Knows no fleet. The surprising idea: the fleets are most of what a decision computes, and no replica starts so fast that
they have to know at once: a few turns wait for each other, and are computed one after the other as if they had not.
"""

from typing import Final, NamedTuple

from capstan_operator.decide.fleets.dispersion import Dispersion
from capstan_operator.decide.values import Value

EVERY_S: Final = 4.0
"""How often the fleets get what came."""


class Arrived(NamedTuple):
    """What came of one class within one turn."""

    requests: float
    tokens: float
    """Prompt tokens that have to be computed."""
    late: float = 0.0
    """Requests that ended in it and had missed a threshold."""


class Turn(NamedTuple):
    """What one turn of the law saw."""

    seconds: float
    arrived: tuple[Arrived, ...]
    """Within them, of each class."""
    running: float = 0.0
    """Requests on the real replicas, at its end."""


class Arrivals(Value):
    """Of the turns that wait, and how unevenly requests come."""

    turns: tuple[Turn, ...] = ()
    dispersion: Dispersion = Dispersion()

    def after(self, turn: Turn, long_prompt: float) -> "Arrivals":
        """After one more turn. `long_prompt` is E[I²]/E[I] tokens."""
        tokens = sum([each.tokens for each in turn.arrived])
        dispersion = self.dispersion.after(tokens, turn.seconds, long_prompt)
        return Arrivals.made(turns=(*self.turns, turn), dispersion=dispersion)

    def taken(self) -> "Arrivals":
        """After the fleets got what waited."""
        return Arrivals.made(dispersion=self.dispersion)

    @property
    def seconds(self) -> float:
        return sum([turn.seconds for turn in self.turns])

    @property
    def in_all(self) -> tuple[Arrived, ...]:
        """What came of each class."""
        by_class = zip(*[turn.arrived for turn in self.turns], strict=True)
        return tuple([Arrived(*map(sum, zip(*each, strict=True))) for each in by_class])
