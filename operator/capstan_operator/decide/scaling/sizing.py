"""From the bank's misses to numbers of replicas: what is needed, what is safe to have fewer of, and with what margin.

    needed = the smallest fleet that would have missed no more than the objective allows, times the margin
    safe   = the same for half of what it allows, times the growth within the time that a start takes
    margin = (1 + unexplained) · (1 + 0.1·√(15 min / (15 min + history)) + 3 % per minute of start-up)

The margin is the price of looking back: what came says less about what comes the shorter it was seen, and the longer
new replicas take to help. Misses that were measured and not told by the bank add to it.

The surprising idea: a threshold that no number of replicas can meet asks for no replicas. What a fleet without bounds
would have missed is unavoidable, and an infeasible objective does not run to the cap.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from capstan_operator.decide.curve import Array
from capstan_operator.decide.fleets.bank import Bank, Misses
from capstan_operator.decide.values import Value

USUAL_STARTUP_S: Final = 120.0
"""Assumed until a start was measured."""
# Of what may be missed, the part that a fleet may have missed to be gone down to.
_SAFE_SHARE: Final = 0.5
# The same with enough of the error budget to spare. With more than that a load that comes in bursts is missed.
_CONSOLIDATED_SHARE, _ENOUGH_SPARE = 0.7, 0.5
# Of what may be missed, the part that comes on top of what no fleet avoids. Near that the bank tells too few misses of
# small fleets: with more than this it would call one large enough that is far from the best there is.
_BEYOND_SHARE: Final = 0.2
# A fleet that is this much over a whole number is that number.
_TOLERANCE: Final = 0.02
_LEAST_SHARE: Final = 1e-6
_HISTORY_S, _HISTORY_MARGIN, _STARTUP_MARGIN_PER_S = 900.0, 0.1, 0.03 / 60
_FEEDBACK_HALF_LIFE_S, _FEEDBACK_PAUSE_S = 600.0, 60.0
_FEEDBACK_GAIN, _LARGEST_FEEDBACK, _FEEDBACK_SLACK = 6.0, 0.3, 0.4
LOW_BUDGET: Final = 0.1
"""Of the error budget's whole window: with less left nothing is given up, and half of what is allowed is kept back."""
ENOUGH_REQUESTS: Final = 50
"""Finished requests without which their misses say nothing."""


class Feedback(Value):
    """Misses that were measured, beside those that the bank told for the fleet that really was ready."""

    seen: float = 0
    seen_missed: float = 0
    told: float = 0
    told_missed: float = 0
    paused_s: float = 0
    """For how long nothing is learnt: a queue says what too small a fleet misses, and its late ones end after it."""

    def learn(
        self, *, seen: float, seen_missed: float, told: float, told_missed: float, seconds: float, is_queueing: bool
    ) -> "Feedback":
        paused_s = _FEEDBACK_PAUSE_S if is_queueing else self.paused_s - seconds
        if paused_s > 0:
            return self.changed(paused_s=paused_s)
        kept = 0.5 ** (seconds / _FEEDBACK_HALF_LIFE_S)
        return Feedback.made(
            seen=kept * self.seen + seen,
            seen_missed=kept * self.seen_missed + seen_missed,
            told=kept * self.told + told,
            told_missed=kept * self.told_missed + told_missed,
        )

    @property
    def unexplained(self) -> float:
        """Share of requests that missed although the bank did not say so; 0 without enough of them."""
        if self.seen < ENOUGH_REQUESTS or self.told < ENOUGH_REQUESTS:
            return 0.0
        return max(0.0, self.seen_missed / self.seen - self.told_missed / self.told)

    def margin(self, allowed: float) -> float:
        """What to add to a fleet for them; a part of what is `allowed` is within the bank's own accuracy."""
        return min(_LARGEST_FEEDBACK, _FEEDBACK_GAIN * max(0.0, self.unexplained - _FEEDBACK_SLACK * allowed))


def margin(feedback: Iterable[Feedback], allowed: Iterable[float], history_s: float, startup_s: float) -> float:
    """By how much a real fleet must be larger than the virtual one that sufficed.

    `feedback` is that of each class, of whose requests the share `allowed` may miss; the worst one binds.
    """
    worst = max((each.margin(share) for each, share in zip(feedback, allowed, strict=False)), default=0.0)
    short = _HISTORY_MARGIN * math.sqrt(_HISTORY_S / (_HISTORY_S + history_s))
    slow = _STARTUP_MARGIN_PER_S * startup_s
    return (1 + worst) * (1 + short + slow)


class Sizing(NamedTuple):
    """What the look-back asks for."""

    needed: int
    """Fewest replicas whose misses fit the objective."""
    safe: int
    """Fewest that may be gone down to: their misses take half of it at most, or more where there is budget to spare."""
    binding: str
    """The class that asks for most."""
    allowed: float
    """The share of its requests that may miss."""
    careful: float
    """The share that a fleet may have missed to be gone down to without spending any error budget."""
    unavoidable: float
    """The share that any fleet would have missed, where that raises what may be."""
    margin: float
    seconds: float
    """Of look-back."""
    names: tuple[str, ...]
    sizes: Array
    misses: Misses
    rise: float = 1.0
    """Of the margin, the factor by which the load is about to grow as it does at this hour."""
    growth: float = 1.0
    """The factor by which it has just grown, within the time that a start takes."""
    spare: float = 0.0
    """Share of the binding class's error budget that is there to be spent."""

    def missed(self, replicas: int) -> dict[str, float]:
        """Per class, the share that so many replicas would have missed, judged with the margin."""
        fleet = self.fleet(replicas)
        return {name: _share(self.misses.shares[k], self.sizes, fleet) for k, name in enumerate(self.names)}

    def fleet(self, replicas: int) -> float:
        """The size of the virtual fleet that stands for so many real replicas."""
        return (replicas + _TOLERANCE) / self.margin


def size(
    bank: Bank,
    sizes: Array,
    allowed: Sequence[float],
    factor: float,
    *,
    spare: Sequence[float] = (),
    rise: float = 1.0,
    growth: float = 1.0,
) -> Sizing:
    """The sizing for classes that may miss `allowed` of their requests, with the margin `factor`, `rise` included.

    What has just grown may go on growing for as long as it would take to get a replica back. `spare` is the share of
    each class's error budget that is there to be spent: with enough of it a fleet is safe that leaves less room.
    """
    growth = max(1.0, growth)
    misses = bank.misses(len(sizes))
    # After a sudden load a small fleet can be told to have missed less than a larger one. What is enough must be enough
    # for every larger one too, or a replica would go although the rest would miss.
    shares = misses.shares.copy()
    shares[:, 1:] = np.maximum.accumulate(shares[:, :0:-1], axis=1)[:, ::-1]
    unavoidable = shares[:, -1].tolist()
    ups = [max(share, lost + _BEYOND_SHARE * share) for share, lost in zip(allowed, unavoidable, strict=True)]
    needed, safe, binding = 1, 1, 0
    spare = spare or (0.0,) * len(allowed)
    for k, (permitted, lost, up) in enumerate(zip(allowed, unavoidable, ups, strict=True)):
        down = _down(_safe_share(spare[k]), permitted, lost)
        asked = _fewest(shares[k], sizes, up, factor)
        if asked > needed:
            needed, binding = asked, k
        safe = max(safe, _fewest(shares[k], sizes, down, growth * factor))
    return Sizing(
        needed=needed,
        safe=max(safe, needed),
        binding=bank.classes[binding],
        allowed=ups[binding],
        careful=_down(_SAFE_SHARE, allowed[binding], unavoidable[binding]),
        unavoidable=unavoidable[binding] if ups[binding] > allowed[binding] else 0.0,
        margin=factor,
        seconds=misses.seconds,
        names=bank.classes,
        sizes=sizes,
        misses=Misses(misses.requests, shares, misses.seconds),
        rise=rise,
        growth=growth,
        spare=spare[binding],
    )


def _down(part: float, permitted: float, lost: float) -> float:
    """What a fleet may have missed to be gone down to: a part of what may be missed, or of what that adds to the share
    that any fleet would have `lost`.
    """
    return max(part * permitted, lost + part * _BEYOND_SHARE * permitted)


def _safe_share(spare: float) -> float:
    return _SAFE_SHARE + min(1.0, max(0.0, spare / _ENOUGH_SPARE)) * (_CONSOLIDATED_SHARE - _SAFE_SHARE)


def _share(shares: Array, sizes: Array, fleet: float) -> float:
    """What a fleet between two sizes would have missed: the reverse of `_fewest`, so that no sentence belies it."""
    index = 1 + int(np.searchsorted(sizes[1:], fleet))
    if index == 1 or index >= len(sizes) - 1:
        return float(shares[min(index, len(sizes) - 1)])
    over, under = float(shares[index - 1]), max(float(shares[index]), _LEAST_SHARE)
    if over <= under or fleet >= sizes[index]:
        return float(shares[index])
    below, above = float(sizes[index - 1]), float(sizes[index])
    return over * math.pow(under / over, math.log(fleet / below) / math.log(above / below))


def _fewest(shares: Array, sizes: Array, allowed: float, factor: float) -> int:
    # The boundless one fits always: it is what is unavoidable.
    index = 1 + int((shares[1:] <= allowed).argmax())
    enough = float(sizes[index])
    if index > 1:
        # Between the two neighbours, where misses fall like a power of the size.
        over, under = float(shares[index - 1]), max(float(shares[index]), _LEAST_SHARE)
        part = math.log(over / allowed) / math.log(over / under) if over > under else 1.0
        enough = float(sizes[index - 1]) * (enough / float(sizes[index - 1])) ** min(part, 1.0)
    return max(1, math.ceil(enough * factor - _TOLERANCE))
