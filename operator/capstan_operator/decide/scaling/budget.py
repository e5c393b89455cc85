"""Divides a budget of accelerators between resources, by what each accelerator earns in attainment.

    1. what each must have (`minReplicas`, or what a person has set), evenly where it is too much for all
    2. SLO classes by priority; within one, always the step that earns most attainment per accelerator
    3. what the last minutes need, with the margin of those who look back
    4. what is asked for beyond that: spares, backlogs, what is not yet safe to give up
    5. the rest, evenly, so that everybody may grow without asking

Attainment is S-shaped in the size of a fleet: below its load nearly everything is late. So a step is as many replicas
as earn most *on average*, which is an edge of the curve's lower hull, and greed is right on hulls.

A replica changes hands only for five points of attainment per accelerator more than it earned where it was: an exchange
costs a cold start and leaves a backlog, and where two fleets both lack replicas, each swap would cost more than it
brings. And what is promised is there: whoever shall grow waits until those who shall shrink have
really given up what they have. Knows no cluster and no time; equal demands give equal shares.
"""

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import pairwise
from typing import Final, NamedTuple

from capstan_operator.decide.scaling.demand import Demand

_PRICE_OF_A_MOVE: Final = 0.05
"""In attainment, for each accelerator."""


class Claim(NamedTuple):
    """One resource at the table; each of its replicas takes so many accelerators."""

    demand: Demand
    accelerators: int = 1

    @property
    def held(self) -> int:
        """Accelerators that are in use or promised to be."""
        return self.accelerators * (max(self.demand.live, self.demand.wanted) + self.demand.leaving)


def divide(total: int, claims: Mapping[str, Claim]) -> dict[str, int]:
    """How many replicas each may have now, by name. The sum never grows beyond `total` accelerators.

    It may be beyond because of what was there before, or what a person has set; then nobody gets more than there is.
    """
    table = _Table(total, claims)
    table.evenly({name: claim.demand.floor for name, claim in claims.items()})
    for priority in sorted({tier.priority for c in claims.values() for tier in c.demand.tiers}, reverse=True):
        table.by_earnings(priority)
    table.evenly({name: claim.demand.needed for name, claim in claims.items()})
    table.evenly({name: claim.demand.asked for name, claim in claims.items()})
    table.evenly({name: claim.demand.ceiling for name, claim in claims.items()})
    return table.available_now()


class _Table:
    """A division in the making. What is handed out is kept in order, the most important first."""

    def __init__(self, total: int, claims: Mapping[str, Claim]) -> None:
        self._total, self._claims = total, dict(sorted(claims.items()))
        self._free = total
        self._given = dict.fromkeys(self._claims, 0)
        self._order: list[str] = []

    def evenly(self, limits: Mapping[str, int]) -> None:
        """One replica at a time to whoever has fewest, up to its limit."""
        queue = [(given, name) for name, given in self._given.items() if given < limits[name]]
        heapify(queue)
        while queue:
            given, name = queue[0]
            if self._give(name, 1) and given + 1 < limits[name]:
                heapreplace(queue, (given + 1, name))
            else:
                heappop(queue)

    def by_earnings(self, priority: int) -> None:
        """Steps of all claims, those that earn most first."""
        queue: list[tuple[float, str, int]] = []
        steps = {name: self._steps(name, priority) for name in self._claims}

        def offer(name: str) -> None:
            for earned, replicas in steps[name]:
                heappush(queue, (-earned, name, replicas))
                break

        for name in self._claims:
            offer(name)
        while queue:
            _, name, replicas = heappop(queue)
            if not self._give(name, replicas):
                # The whole step does not fit: what earns most among those that do?
                steps[name] = self._steps(name, priority)
            offer(name)

    def available_now(self) -> dict[str, int]:
        """What was given, as far as it is not in somebody else's hands."""
        free = self._total - sum(claim.held for claim in self._claims.values())
        now = dict.fromkeys(self._claims, 0)
        for name in self._order:
            claim = self._claims[name]
            if now[name] >= claim.demand.wanted:
                if claim.accelerators > free:
                    continue
                free -= claim.accelerators
            now[name] += 1
        return now

    def _steps(self, name: str, priority: int) -> Iterator[tuple[float, int]]:
        """From what `name` was given on: attainment per accelerator that a step earns, and its replicas."""
        demand, accelerators = self._claims[name]
        curve = next((tier.shortfall for tier in demand.tiers if tier.priority == priority), ())
        if not curve:
            return
        price = _PRICE_OF_A_MOVE * accelerators
        start = self._given[name]
        most = min(demand.ceiling, start + self._free // accelerators)
        # What nobody needs at present is not defended.
        kept = min(demand.wanted, demand.needed)
        loss = [curve[min(n, len(curve) - 1)] + price * max(0, kept - n) for n in range(start, most + 1)]
        for left, right in pairwise(_lower_hull(loss)):
            earned = _slope(loss, right, left)
            if earned <= 0:
                return
            yield earned / accelerators, right - left

    def _give(self, name: str, replicas: int) -> bool:
        needed = replicas * self._claims[name].accelerators
        if needed > self._free:
            return False
        self._free -= needed
        self._given[name] += replicas
        self._order += [name] * replicas
        return True


def _lower_hull(values: Sequence[float]) -> list[int]:
    """Indices of the values on the convex curve below all of them (Andrew's monotone chain)."""
    hull: list[int] = []
    for n in range(len(values)):
        while len(hull) > 1 and _slope(values, hull[-2], hull[-1]) >= _slope(values, hull[-2], n):
            hull.pop()
        hull.append(n)
    return hull


def _slope(values: Sequence[float], left: int, right: int) -> float:
    return (values[right] - values[left]) / abs(right - left)
