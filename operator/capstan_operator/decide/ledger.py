"""The books kept over time: error budgets, start-up times, replica hours, condition transitions, recent decisions.

Steers nothing, and nothing that steers reads more of it than the median start-up time. Bounded in every dimension: an
error budget is a ring of twelve slots, start-up times are the last 32, decisions the last ten.
"""

from collections.abc import Iterable, Mapping

from pydantic import Field

from capstan_api.spec import Slo
from capstan_api.status import ConditionStatus, ConditionType, DecisionStatus
from capstan_operator.decide.observation import ClassCounters, Phase, Replica
from capstan_operator.decide.values import Value

_NUM_BUDGET_SLOTS = 12
_NUM_STARTUPS = 32
_NUM_DECISIONS = 10
# An operator that was away longer than this does not know what ran meanwhile.
_LONGEST_ABSENCE_S = 300.0


class BudgetSlot(Value):
    start: float
    total: float = 0
    good: float = 0


class Transition(Value):
    """Since when a condition has had its status."""

    status: ConditionStatus
    since: float


class Ledger(Value):
    budgets: dict[str, tuple[BudgetSlot, ...]] = Field(default_factory=dict)
    startups_s: tuple[float, ...] = ()
    replica_hours: float = 0
    since: float | None = None
    transitions: dict[ConditionType, Transition] = Field(default_factory=dict)
    decisions: tuple[DecisionStatus, ...] = ()
    """Those that did something, newest first."""
    last: DecisionStatus | None = None
    """The newest decision; while nothing but its figures would change, the one that began the hold."""

    def advanced(
        self,
        slos: Iterable[Slo],
        delta: Mapping[str, ClassCounters],
        replicas: Iterable[Replica],
        last: float,
        now: float,
    ) -> "Ledger":
        """The books after one more look at the world; `last` is the moment of the one before."""
        replicas = tuple(replicas)
        # A start is counted in the turn that first sees the replica ready; restarts are another matter.
        started = [
            r.ready_at - r.created_at
            for r in replicas
            if r.phase is Phase.READY and r.ready_at is not None and r.ready_at > last and not r.restarts
        ]
        absent_s = now - last if self.since is not None else 0.0
        elapsed_s = min(max(0.0, absent_s), _LONGEST_ABSENCE_S)
        running = sum(1 for r in replicas if r.phase is not Phase.FAILED)
        return self.model_copy(
            update={
                "budgets": {s.name: _spent(self.budgets.get(s.name, ()), s, delta.get(s.name), now) for s in slos},
                "startups_s": (*self.startups_s, *(s for s in started if s >= 0))[-_NUM_STARTUPS:],
                "replica_hours": self.replica_hours + running * elapsed_s / 3600,
                "since": now if self.since is None else self.since,
            }
        )

    def noted(self, said: DecisionStatus, changes: Iterable[DecisionStatus]) -> "Ledger":
        """The books after a decision: `said` is the most important thing about it."""
        changes = tuple(changes)
        goes_on = self.last is not None and (said.action, said.reason) == (self.last.action, self.last.reason)
        return self.model_copy(
            update={
                "decisions": (*changes, *self.decisions)[:_NUM_DECISIONS],
                "last": self.last if goes_on and not changes else said,
            }
        )

    def startup_s(self, share: float) -> float | None:
        """Quantile of the recent start-up times."""
        ordered = sorted(self.startups_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    def budget_left(self, slo: Slo) -> float | None:
        """Share of the class's error budget that is left, negative when overdrawn; None without requests."""
        slots = self.budgets.get(slo.name, ())
        total, good = sum(s.total for s in slots), sum(s.good for s in slots)
        allowed = total * (1 - float(slo.objective_percent) / 100)
        if total <= 0:
            return None
        if allowed <= 0:
            return 1.0 if good >= total else 0.0
        return 1 - max(0.0, total - good) / allowed


def _spent(slots: tuple[BudgetSlot, ...], slo: Slo, delta: ClassCounters | None, now: float) -> tuple[BudgetSlot, ...]:
    width_s = slo.window_seconds / _NUM_BUDGET_SLOTS
    slots = tuple(s for s in slots if s.start > now - slo.window_seconds)
    if delta is None or delta.slo_total <= 0:
        return slots
    if not slots or now - slots[-1].start >= width_s:
        slots = (*slots, BudgetSlot(start=now))
    last = slots[-1]
    return (
        *slots[:-1],
        BudgetSlot(start=last.start, total=last.total + delta.slo_total, good=last.good + delta.slo_good),
    )[-_NUM_BUDGET_SLOTS:]
