"""How many of the requests that the queues tell to be late by chance really are: a share for each class, learnt.

The tail of the waiting time is one formula for all workloads. Where requests come in flocks it is right within a tenth,
where they come evenly it tells several times too many. So what was late is held against what was told of the fleet that
is really ready: `least` of it if nobody had bad luck, and `most` with all of it. Those between are a Poisson number
around the share of what was told of them; a Gamma distribution around 1, which as many counts as `_PRIOR` support, is
what is believed at first, and (prior + seen − least) / (prior + most − least) is then its mean (Gelman et al., Bayesian
Data Analysis, 2013, 2.6).

Never more than all: what is late beyond it is not bad luck but unexplained, and `Feedback` asks for replicas at once.

The surprising idea: minutes in which requests queue count like all others, although they end later than they are told.
Left out, only quiet ones would remain, which say nothing of what happens in those that matter.
"""

from typing import Final

from capstan_operator.decide.values import Value

_HALF_LIFE_S: Final = 1800.0
# Late requests: with this many told beyond what was seen, half of them are believed.
_PRIOR: Final = 20.0
# Of those that are told: hours without bad luck are no promise for the next one.
_LEAST: Final = 0.2


class Chance(Value):
    """Late requests of one class, older ones weighing less."""

    seen: float = 0
    least: float = 0
    """Told of the real fleet if nobody were late by chance."""
    most: float = 0
    """Told if all were who may be."""

    def after(self, seen: float, least: float, most: float, seconds: float) -> "Chance":
        kept = 0.5 ** (seconds / _HALF_LIFE_S)
        return Chance.made(seen=kept * self.seen + seen, least=kept * self.least + least, most=kept * self.most + most)

    @property
    def share(self) -> float:
        """Of those that are told to be late by chance; 1 until something else was seen."""
        seen, told = max(0.0, self.seen - self.least), max(0.0, self.most - self.least)
        return min(1.0, max(_LEAST, (_PRIOR + seen) / (_PRIOR + told)))
