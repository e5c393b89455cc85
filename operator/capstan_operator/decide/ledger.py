"""The books kept over time: error budgets, start-up times, replica hours, condition transitions, recent decisions.

Steers nothing; what steers reads the start-up times, and what is left of the error budgets. Bounded in every dimension:
an error budget is a ring of twelve slots, start-up times are the last 32, decisions the last ten.
"""

from collections.abc import Iterable, Mapping

from pydantic import Field

from capstan_api.spec import Slo, Variant
from capstan_api.startup import StartupPhase
from capstan_api.status import ConditionStatus, ConditionType, DecisionStatus
from capstan_operator.decide.lifelong import lifelong_by
from capstan_operator.decide.seen.counters import ClassCounters
from capstan_operator.decide.seen.observation import Phase, Replica
from capstan_operator.decide.values import Value

_NUM_BUDGET_SLOTS = 12
_NUM_STARTUPS = 32
# Starts that are followed at the same time; more would only tell the same, and must fit the status.
_MOST_FOLLOWED = 256
_NUM_DECISIONS = 10
# Late requests: with no more than these allowed so far, good luck proves nothing.
_FEW_MISSES = 20.0


class BudgetSlot(Value):
    start: float
    total: float = 0
    good: float = 0


class Transition(Value):
    """Since when a condition has had its status."""

    status: ConditionStatus
    since: float


class Stage(Value):
    """One phase of a start, and when it began."""

    phase: StartupPhase
    since: float


class Ledger(Value):
    budgets: dict[str, tuple[BudgetSlot, ...]] = Field(default_factory=dict)
    startups_s: tuple[float, ...] = ()
    starting: dict[str, Stage] = Field(default_factory=dict)
    """What each replica that starts was last seen to be busy with."""
    stages_s: dict[StartupPhase, tuple[float, ...]] = Field(default_factory=dict)
    """How long recent replicas took for each phase of their start."""
    replica_hours: float = 0
    accelerator_hours: float = 0
    cost: float = 0
    """Like the accelerators' hours at the terms of each moment: what was spent is not changed by an edit."""
    since: float | None = None
    transitions: dict[ConditionType, Transition] = Field(default_factory=dict)
    decisions: tuple[DecisionStatus, ...] = ()
    """Those that did something, newest first."""
    last: DecisionStatus | None = None
    """The newest decision; while nothing but its figures would change, the one that began the hold."""

    def advanced(
        self,
        slos: Iterable[Slo],
        variant: Variant,
        delta: Mapping[str, ClassCounters],
        replicas: Iterable[Replica],
        last: float,
        now: float,
    ) -> "Ledger":
        """The books after one more look at the world; `last` is the moment of the one before."""
        replicas, ready = tuple(replicas), Phase.READY
        # A start is counted in the turn that first sees the replica ready; restarts are another matter.
        started = [
            at - r.created_at
            for r in replicas
            if (at := r.ready_at) is not None and at > last and r.phase is ready and not r.restarts
        ]
        unready = [r for r in replicas if r.phase is not ready]
        running = [r for r in replicas if r.phase not in (Phase.FAILED, Phase.PENDING)] if unready else replicas
        # A replica that was there before ran all the time, also while nobody looked.
        begun = last if self.since is not None else now
        whole_s = max(0.0, now - begun)
        hours = sum([whole_s if (at := r.created_at) <= begun else max(0.0, now - at) for r in running]) / 3600
        accelerator = variant.resources.accelerator
        starting, stages_s = self._staged(replicas if self.starting else unready)
        return self.changed(
            budgets={s.name: _counted(self.budgets.get(s.name, ()), s, delta.get(s.name), now) for s in slos},
            startups_s=(*self.startups_s, *(s for s in started if s >= 0))[-_NUM_STARTUPS:],
            starting=starting,
            stages_s=stages_s,
            replica_hours=self.replica_hours + hours,
            accelerator_hours=self.accelerator_hours + hours * (accelerator.count if accelerator else 0),
            cost=self.cost + hours * float(variant.cost_per_hour),
            since=now if self.since is None else self.since,
        )

    def _staged(self, replicas: Iterable[Replica]) -> tuple[dict[str, Stage], dict[StartupPhase, tuple[float, ...]]]:
        """Who is in which phase of its start now, and the phases' durations with those that have ended."""
        starting: dict[str, Stage] = {}
        stages_s = dict(self.stages_s)

        def ended(stage: Stage, at: float) -> None:
            seconds = max(0.0, at - stage.since)
            stages_s[stage.phase] = (*stages_s.get(stage.phase, ()), seconds)[-_NUM_STARTUPS:]

        for replica in replicas:
            if replica.restarts or (replica.phase is Phase.READY and replica.id not in self.starting):
                continue
            before, report = self.starting.get(replica.id), replica.startup
            if replica.phase is Phase.READY:
                if before is not None and replica.ready_at is not None:
                    ended(before, replica.ready_at)
                continue
            if replica.phase is not Phase.PENDING and replica.phase is not Phase.STARTING:
                continue
            if len(starting) == _MOST_FOLLOWED:
                continue
            if before is None:
                before = Stage(phase=StartupPhase.SCHEDULING, since=replica.created_at)
            starting[replica.id] = before
            if report is not None and report.phase not in (before.phase, StartupPhase.READY):
                ended(before, report.since)
                starting[replica.id] = Stage(phase=report.phase, since=report.since)
        return starting, stages_s

    def noted(self, said: DecisionStatus, changes: Iterable[DecisionStatus]) -> "Ledger":
        """The books after a decision: `said` is the most important thing about it."""
        changes = tuple(changes)
        goes_on = self.last is not None and (said.action, said.reason) == (self.last.action, self.last.reason)
        if goes_on and not changes:
            return self
        return self.changed(decisions=(*changes, *self.decisions)[:_NUM_DECISIONS], last=said)

    def startup_s(self, share: float) -> float | None:
        """Quantile of the recent start-up times."""
        return quantile(self.startups_s, share)

    def least_budget_left(self, slos: Iterable[Slo], now: float) -> float | None:
        """Of the error budget for the whole window, what the class with least has left; None without requests.

        What is used up is set against what the window will allow at this pace, so that the first late request of a
        month does not weigh like the last.
        """
        if self.since is None:
            return None
        seen_s = now - self.since
        lefts = [
            1 - (1 - left) * min(1.0, seen_s / slo.window_seconds)
            for slo in slos
            if (left := self.budget_left(slo)) is not None
        ]
        return min(lefts, default=None)

    def budget_left(self, slo: Slo) -> float | None:
        """Share of the class's error budget that is left, negative when overdrawn; None without requests."""
        total, late, allowed = self._spent(slo)
        if total <= 0:
            return None
        if allowed <= 0:
            return 0.0 if late else 1.0
        return 1 - late / allowed

    def budget_spare(self, slo: Slo) -> float:
        """What is left of it when `_FEW_MISSES` more were allowed and spent: near 0 until much was seen."""
        _, late, allowed = self._spent(slo)
        return 1 - (late + _FEW_MISSES) / (allowed + _FEW_MISSES)

    def _spent(self, slo: Slo) -> tuple[float, float, float]:
        """Requests of the class in its window, those that were late, and how many may be."""
        total, good = _counts(self, slo.name)
        return total, max(0.0, total - good), total * (1 - float(slo.objective_percent) / 100)


@lifelong_by
def _counts(ledger: Ledger, name: str) -> tuple[float, float]:
    """Requests of the class in its window, and the good ones among them. Kept, because a turn asks several times."""
    slots = ledger.budgets.get(name, ())
    return sum([s.total for s in slots]), sum([s.good for s in slots])


def quantile(values: Iterable[float], share: float) -> float | None:
    """The value that `share` of the values are not above; None without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _counted(
    slots: tuple[BudgetSlot, ...], slo: Slo, delta: ClassCounters | None, now: float
) -> tuple[BudgetSlot, ...]:
    width_s = slo.window_seconds / _NUM_BUDGET_SLOTS
    slots = tuple([s for s in slots if s.start > now - slo.window_seconds])
    if delta is None or delta.slo_total <= 0:
        return slots
    if not slots or now - slots[-1].start >= width_s:
        slots = (*slots, BudgetSlot(start=now))
    last = slots[-1]
    return (
        *slots[:-1],
        BudgetSlot.made(start=last.start, total=last.total + delta.slo_total, good=last.good + delta.slo_good),
    )[-_NUM_BUDGET_SLOTS:]
