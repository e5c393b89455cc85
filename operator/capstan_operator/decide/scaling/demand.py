"""What one resource asks of an accelerator budget that it shares: its bounds, its wish, and what replicas would earn.

Knows one resource and no budget. The surprising idea: what a replica earns is read from the virtual fleets, which are
fed the same arrivals whatever really runs. So the curve does not move when replicas are given or taken, and dividing by
it cannot oscillate.
"""

from collections.abc import Sequence
from typing import Final

from capstan_api.scaling import Mode, Scaling
from capstan_api.spec import Slo
from capstan_operator.decide.fleets.bank import Bank
from capstan_operator.decide.scaling.bounds import bounds
from capstan_operator.decide.scaling.sizing import Sizing
from capstan_operator.decide.seen.observation import Observation, Phase
from capstan_operator.decide.values import Value

RECENT_S: Final = 120.0
"""Of the look-back, what earnings and present needs are read from. Whoever was busy a while ago is cautious for good
reasons with its own replicas, and has none to keep them from somebody who is busy now."""
_LEAST_OBJECTIVE: Final = 1e-6


class Tier(Value):
    """SLO classes of one priority."""

    priority: int
    shortfall: tuple[float, ...]
    """For 0, 1, 2, … replicas: by which share of its objective the class that is worst off would miss it, from 1 (no
    request is good) to 0 (the objective is met). Beyond its end the last value holds."""


class Demand(Value):
    """Everything that a division has to know of one resource. All numbers are replicas."""

    floor: int
    """What it has to have before anybody has more."""
    ceiling: int
    needed: int
    """What the last minutes ask for, caution included; between `floor` and `asked`."""
    asked: int
    """What the law would have without an upper bound; at least `floor`."""
    wanted: int
    """What it has decided to have."""
    live: int
    """What there is, leaving ones aside; more than `wanted` during a rollout."""
    leaving: int
    tiers: tuple[Tier, ...] = ()

    @classmethod
    def standing(cls, wanted: int, live: int, leaving: int = 0) -> "Demand":
        """Of one whose number nobody else may change, or of whom no more is known."""
        return cls(floor=wanted, ceiling=wanted, needed=wanted, asked=wanted, wanted=wanted, live=live, leaving=leaving)


def demand(
    scaling: Scaling,
    slos: Sequence[Slo],
    observation: Observation,
    bank: Bank,
    sizing: Sizing | None,
    *,
    asked: int,
    wanted: int,
    startup_s: float | None,
    now: float,
) -> Demand | None:
    """The demand after a decision to have `wanted` replicas; None where no budget is shared.

    Without a `sizing`, because nothing is known yet or nothing can be seen, no replica may be taken from it.
    """
    if observation.allowance is None:
        return None
    leaving = len(observation.with_phase(Phase.DRAINING))
    live = len(observation.replicas) - leaving
    if scaling.mode is not Mode.AUTO:
        return Demand.standing(wanted, live, leaving)
    low, high = bounds(scaling, None, startup_s, now)
    ceiling = min(high.replicas, max(low.replicas, observation.allowance.most))
    floor = low.replicas if sizing is not None else min(max(low.replicas, wanted), ceiling)
    asked = min(max(asked, floor), ceiling)
    needed, tiers = floor, tuple[Tier, ...]()
    if sizing is not None:
        of_late = _of_late(sizing, bank, now)
        needed = min(max(_needed(slos, of_late, ceiling), floor), asked)
        # The margin grows with misses that really happen, so with what was taken: it is needed, and not earned.
        tiers = _tiers(slos, of_late._replace(margin=1.0), ceiling)
    return Demand(
        floor=floor,
        ceiling=ceiling,
        needed=needed,
        asked=asked,
        wanted=wanted,
        live=live,
        leaving=leaving,
        tiers=tiers,
    )


def _of_late(sizing: Sizing, bank: Bank, now: float) -> Sizing:
    """The sizing with the misses of the last minutes only."""
    slots = tuple(slot for slot in bank.slots if slot.end > now - RECENT_S)
    return sizing._replace(misses=bank.changed(slots=slots).misses(len(sizing.sizes)))


def _needed(slos: Sequence[Slo], sizing: Sizing, ceiling: int) -> int:
    """The fewest replicas that fall as little short of all objectives as the most would."""
    if not any(sizing.misses.requests):
        return 0

    def shortfall(replicas: int) -> float:
        missed = sizing.missed(replicas)
        return max(_shortfall(slo, missed[slo.name]) for slo in slos)

    least = shortfall(ceiling) + _LEAST_OBJECTIVE
    return next(replicas for replicas in range(1, ceiling + 1) if shortfall(replicas) <= least)


def _tiers(slos: Sequence[Slo], sizing: Sizing, ceiling: int) -> tuple[Tier, ...]:
    # Without a replica every request misses; without a request nothing does.
    rows = [{slo.name: float(requests > 0) for slo, requests in zip(slos, sizing.misses.requests, strict=True)}]
    while len(rows) <= ceiling and any(rows[-1].values()):
        missed = sizing.missed(len(rows))
        rows.append({slo.name: _shortfall(slo, missed[slo.name]) for slo in slos})
    return tuple(
        Tier(
            priority=priority,
            shortfall=tuple(max(row[slo.name] for slo in slos if slo.priority == priority) for row in rows),
        )
        for priority in sorted({slo.priority for slo in slos}, reverse=True)
    )


def _shortfall(slo: Slo, missed: float) -> float:
    """Of its objective, the share by which a class that misses so many of its requests stays behind."""
    objective = max(float(slo.objective_percent) / 100, _LEAST_OBJECTIVE)
    return max(0.0, objective - (1 - missed)) / objective
