"""The slow loop: how many replicas, from what fleets of every size would have missed.

Up when the fleet would have missed more than the objective allows over the look-back, by as many as it takes; down one
at a time, when the smaller fleet would have missed less than half of it, or somewhat more while much of the error
budget is to spare. The look-back is the scale-down window: what came within it must have been served by fewer, and none
goes before it was seen in whole, because what a short one has not shown comes in the rest of it. `sizing` says how
large the fleet must be and `bounds` how large it may be; here it is given its spare replicas, stabilised, and kept when
the world cannot be seen.

Until the engines have told what they can do, one replica is added at a time, and only while requests queue.

The surprising idea: scaling up needs no panic mode. A burst is in the look-back as soon as it has come, and stays.
"""

import math
from itertools import takewhile

from capstan_api.scaling import Mode, Scaling
from capstan_operator.decide.scaling.bounds import Bound, Bounds, bounds
from capstan_operator.decide.scaling.sizing import LOW_BUDGET, Sizing
from capstan_operator.decide.seen.observation import Allowance
from capstan_operator.decide.seen.signals import Signals
from capstan_operator.decide.values import Value

_NOTABLE_RISE, _NOTABLE_GROWTH = 1.01, 1.2
_BETWEEN_REMOVALS_S = 30.0
# Of the look-back: what came in a shorter hole was counted all the same, and only spread over it.
_HOLE_SHARE = 0.1
# Of a class's requests: with more misses than that in any fleet, they say nothing of how many replicas can do the work.
_HOPELESS_SHARE = 0.5
# A queue that is gone by then was a burst, which the look-back knows about.
_LASTING_QUEUE_S = 8.0
_PEAK_SLOT_S, _PEAK_SPAN_S = 60.0, 900.0
# In turns of the patience with missing metrics: after that the fleet returns to its recent peak.
_BLIND_PATIENCE = 3.0


class Streak(Value):
    """Every turn since `since` asked for more replicas; `level` is the fewest that any of them asked for."""

    since: float
    at: float
    level: int


class Peak(Value):
    """The most replicas that were wanted within a slot of time."""

    at: float
    replicas: int


class ReplicasMemory(Value):
    wanted: int | None = None
    up: Streak | None = None
    removed_at: float | None = None
    active_at: float | None = None
    """When a request was last seen, or could not be ruled out."""
    seen_at: float | None = None
    """When the world was last seen whole."""
    whole_since: float | None = None
    """Since when there was no hole in what was seen."""
    queued_since: float | None = None
    """Since when there is something to catch up with, or, while capacity is not known, a queue."""
    peaks: tuple[Peak, ...] = ()
    """Of the last quarter of an hour, newest first."""


class Advice(Value):
    memory: ReplicasMemory
    recommended: int
    """What mode Auto would want at once, without stabilization."""
    asked: int
    """What it would want if nothing bounded it above."""
    reason: str
    message: str


class Situation(Value):
    """Everything that the slow loop looks at in one turn."""

    signals: Signals
    num_live: int = 0
    """Replicas that are not draining: pending, starting, ready or failed."""
    num_ready: int = 0
    num_starting: int = 0
    num_overdue: int = 0
    """Replicas that have been pending for too long to be counted on."""
    startup_s: float | None = None
    """What a start takes at most, nine times in ten."""
    budget_left: float | None = None
    """Share of the error budget of the whole window, of the class with least."""
    catching_up: int = 0
    """Replicas that it takes to work off what queues, 0 when nothing does."""
    patience_s: float = 0
    """The tightest TTFT threshold."""
    allowance: Allowance | None = None
    """What an accelerator budget leaves, where there is one."""


def advise(memory: ReplicasMemory, situation: Situation, sizing: Sizing | None, scaling: Scaling, now: float) -> Advice:
    """How many replicas to have from now on, and why; never fewer on missing data. No `sizing`: not yet known."""
    signals = situation.signals
    # A fleet that is only being made cannot be idle: it would end the replica that it has just begun.
    is_loading = situation.num_live > situation.num_overdue and situation.num_ready == 0
    active_at = now if signals.active or is_loading or memory.active_at is None else memory.active_at
    memory = _seen(memory, situation, scaling, active_at, now)
    if scaling.mode is Mode.MANUAL and scaling.replicas is not None:
        return _settled(memory, scaling.replicas, "Manual", f"{_count(scaling.replicas)} asked for by hand")
    bound = bounds(scaling, situation.allowance, situation.startup_s, now)
    low, high = bound.low.replicas, bound.high.replicas
    if memory.wanted is None:
        asked = max(1, low, situation.num_live)
        first = min(high, asked)
        return _settled(memory, first, "Initial", f"starting with {_count(first)}", asked)
    current = min(max(memory.wanted, low), high)
    if current != memory.wanted:
        binding, asked = (bound.high, memory.wanted) if current < memory.wanted else (bound.low, current)
        return _settled(
            memory, current, binding.reason, f"{binding.because}: {memory.wanted} → {_count(current)}", asked
        )
    if not signals.gateway_seen:
        return _blind(memory, current, high, scaling, now)

    if current == 0:
        if not signals.active:
            return _held(memory, 0, "Idle", "no request: scaled to zero")
        if not (signals.complete or signals.blind or signals.queue):
            return _held(memory, 0, "MetricsMissing", "a gateway was not read: 0 replicas kept for this turn")
        asked = max(1, sizing.needed if sizing is not None else 1)
        cause = f"{_requests(signals.held)} held" if signals.held >= 1 else "a request arrived"
        if high == 0:
            return _held(memory, 0, bound.high.reason, f"{cause}; {bound.high.because}", asked)
        woken = min(high, asked)
        return _settled(memory, woken, "RequestsHeld", f"{cause}: 0 → {_count(woken)}", asked)
    idle_s = now - active_at
    if low == 0 and idle_s >= scaling.idle.scale_to_zero_after_seconds:
        return _settled(memory, 0, "Idle", f"no request for {idle_s:.0f} s: {current} → 0 replicas")
    if sizing is None:
        return _unsized(memory, situation, scaling, bound.high, current, now)
    return _sized(memory, situation, sizing, scaling, bound, current, now)


def _unsized(
    memory: ReplicasMemory, situation: Situation, scaling: Scaling, high: Bound, current: int, now: float
) -> Advice:
    """While nobody knows what one can serve: one more at a time for as long as requests queue."""
    queue, unknown = situation.signals.queue, "what one can serve is not yet known"
    queued_since = memory.queued_since if memory.queued_since is not None else now
    # What waits for a replica that is only being made says nothing of those that are there.
    counts = queue > 0 and situation.num_ready == situation.num_live == current
    memory = memory.changed(queued_since=queued_since if counts else None)
    if not counts or now - queued_since < max(_LASTING_QUEUE_S, situation.patience_s):
        return _held(memory, current, "CapacityUnknown", f"{_count(current)}: {unknown}")
    because = f"{_requests(queue)} wait, and {unknown}"
    if current >= high.replicas:
        return _held(memory, current, high.reason, f"{because}; {high.because}", current + 1)
    return _raised(memory, situation, scaling, current, current + 1, "CapacityUnknown", because, now)


def _sized(
    memory: ReplicasMemory,
    situation: Situation,
    sizing: Sizing,
    scaling: Scaling,
    bound: Bounds,
    current: int,
    now: float,
) -> Advice:
    queued_since = memory.queued_since if memory.queued_since is not None else now
    has_backlog = situation.catching_up > sizing.needed and now - queued_since >= _LASTING_QUEUE_S
    needed = situation.catching_up if has_backlog else sizing.needed
    asked = needed + scaling.spare_replicas
    low, high = bound
    wanted = min(max(asked, low.replicas, 1), high.replicas)
    memory = memory.changed(
        queued_since=queued_since if situation.catching_up else None, up=memory.up if wanted > current else None
    )
    if asked <= wanted <= current:
        return _lowered(memory, situation, sizing, scaling, low, current, now)
    reason, because = "MissesPredicted", _would_miss(sizing, current)
    if has_backlog:
        reason, because = "Backlog", f"{_requests(situation.signals.queue)} wait, {_count(needed)} work that off"
    if wanted < asked:
        reason, because = high.reason, f"{because}; {high.because}"
    if wanted > current:
        raised = _raised(memory, situation, scaling, current, wanted, reason, because, now)
        return raised.changed(asked=asked)
    return _held(memory, current, reason, because, asked)


def _raised(
    memory: ReplicasMemory,
    situation: Situation,
    scaling: Scaling,
    current: int,
    wanted: int,
    reason: str,
    because: str,
    now: float,
) -> Advice:
    """More replicas, once every turn of the window has asked for them."""
    if situation.num_overdue:
        # One more would stand in the same queue; until there is room, the limits protect what is served.
        without = f"{because}, but {_count(situation.num_overdue)} found no room to run: {_count(current)} kept"
        return _kept(memory, current, wanted, "CapacityUnavailable", without)
    streak = Streak(since=now, at=now, level=wanted)
    if memory.up is not None and now - memory.up.at <= scaling.stale_metrics.max_age_seconds:
        streak = Streak(since=memory.up.since, at=now, level=min(memory.up.level, wanted))
    memory = memory.changed(up=streak)
    window_s = scaling.behavior.scale_up.stabilization_window_seconds
    if now - streak.since < window_s:
        pending = f"{because}: {_count(wanted)} if it lasts {window_s} s"
        return _kept(memory, current, wanted, f"{reason}Pending", pending)
    return _settled(memory, streak.level, reason, f"{because}: {current} → {_count(streak.level)}")


def _lowered(
    memory: ReplicasMemory,
    situation: Situation,
    sizing: Sizing,
    scaling: Scaling,
    low: Bound,
    current: int,
    now: float,
) -> Advice:
    """One replica fewer when that is safe, else what keeps it."""
    safe = max(sizing.safe + scaling.spare_replicas, 1)
    if safe >= current:
        because = _would_miss(sizing, max(1, current - 1))
        if sizing.growth >= _NOTABLE_GROWTH:
            because += f", and the load grew by {_percent(sizing.growth - 1)} in the time that a start takes"
        return _held(memory, current, "WithinTargets", because)
    if low.replicas >= current:
        return _held(memory, current, low.reason, f"{low.because}: {_count(current)} kept")
    fewest = max(safe, low.replicas)
    window_s = float(scaling.behavior.scale_down.stabilization_window_seconds)
    seen_s = now - (memory.whole_since if memory.whole_since is not None else now)
    since_removal_s = math.inf if memory.removed_at is None else now - memory.removed_at
    missed = sizing.missed(current - 1)
    worst = max(missed, key=lambda name: missed[name])
    held = None
    if missed[worst] > _HOPELESS_SHARE:
        held = "ObjectiveOutOfReach", f"no fleet would have met {worst}: {_count(current)} kept"
    elif not situation.signals.complete:
        missing = situation.signals.missing or "a replica"
        held = "MetricsMissing", f"{missing} could not be measured: {_count(current)} kept"
    elif situation.budget_left is not None and situation.budget_left < LOW_BUDGET:
        held = "ErrorBudgetLow", f"{situation.budget_left:.0%} of the error budget is left: {_count(current)} kept"
    elif situation.catching_up:
        held = "Backlog", f"{_requests(situation.signals.queue)} wait: {_count(current)} kept"
    elif situation.num_starting:
        held = "Starting", f"{_count(fewest)} would do; none goes while others start"
    elif seen_s < window_s or since_removal_s < min(window_s, _BETWEEN_REMOVALS_S):
        held = "SpareCapacityPending", f"{_count(fewest)} would do: {_count(current)} kept for a while"
    if held is not None:
        return _kept(memory, current, fewest, *held)
    memory = memory.changed(removed_at=now)
    because = _would_miss(sizing, current - 1)
    if missed[sizing.binding] > sizing.careful:
        because += f", and {sizing.spare:.0%} of the error budget is to spare"
    return _settled(memory, current - 1, "SpareCapacity", f"{because}: {current} → {_count(current - 1)}")


def _seen(
    memory: ReplicasMemory, situation: Situation, scaling: Scaling, active_at: float, now: float
) -> ReplicasMemory:
    """The memory of how well the world could be seen, and of how many replicas were wanted lately."""
    seen_at, whole_since = memory.seen_at, memory.whole_since
    if situation.signals.gateway_seen:
        window_s = scaling.behavior.scale_down.stabilization_window_seconds
        longest_s = max(scaling.stale_metrics.max_age_seconds, _HOLE_SHARE * window_s)
        has_hole = seen_at is None or now - seen_at > longest_s
        seen_at, whole_since = now, now if has_hole or whole_since is None else whole_since
    peaks = memory.peaks
    if memory.wanted is not None:
        if peaks and now - peaks[0].at < _PEAK_SLOT_S:
            if memory.wanted > peaks[0].replicas:
                peaks = (peaks[0].changed(replicas=memory.wanted), *peaks[1:])
        else:
            recent = takewhile(lambda peak: peak.at > now - _PEAK_SPAN_S, peaks)
            peaks = (Peak(at=now, replicas=memory.wanted), *recent)
    return memory.changed(active_at=active_at, seen_at=seen_at, whole_since=whole_since, peaks=peaks)


def _blind(memory: ReplicasMemory, current: int, high: int, scaling: Scaling, now: float) -> Advice:
    """Without metrics: what there is, and after a while what there recently was at most."""
    unseen_s = now - memory.seen_at if memory.seen_at is not None else 0.0
    peak = min(max((peak.replicas for peak in memory.peaks), default=current), high)
    if peak > current and unseen_s > _BLIND_PATIENCE * scaling.stale_metrics.max_age_seconds:
        sentence = f"no word from the gateway for {unseen_s:.0f} s: {current} → {_count(peak)}, the recent peak"
        return _settled(memory, peak, "MetricsMissing", sentence)
    return _held(memory, current, "MetricsMissing", f"no word from the gateway: {_count(current)} kept")


def _would_miss(sizing: Sizing, replicas: int) -> str:
    """What so many replicas would have missed, of the class that is worst off against what it may."""
    share = sizing.missed(replicas)[sizing.binding]
    sign = ">" if share > sizing.allowed else "≤"
    span = f"{sizing.seconds / 60:.0f} min" if sizing.seconds >= 120 else f"{sizing.seconds:.0f} s"
    missed = f"would have missed {_percent(share)} {sign} {_percent(sizing.allowed)} of {sizing.binding}"
    if sizing.unavoidable:
        missed += f" (any fleet {_percent(sizing.unavoidable)})"
    rise = f", and {_percent(sizing.rise - 1)} more is usual by the time that others are ready"
    return f"{_count(replicas)} {missed} in the last {span}{rise if sizing.rise >= _NOTABLE_RISE else ''}"


def _settled(memory: ReplicasMemory, wanted: int, reason: str, message: str, asked: int | None = None) -> Advice:
    """So many from now on; `asked` says what it would be without an upper bound, where that is more."""
    settled = memory.changed(wanted=wanted, up=None)
    return _held(settled, wanted, reason, message, asked)


def _held(memory: ReplicasMemory, current: int, reason: str, message: str, asked: int | None = None) -> Advice:
    return _kept(memory, current if asked is None else asked, current, reason, message)


def _kept(memory: ReplicasMemory, asked: int, recommended: int, reason: str, message: str) -> Advice:
    return Advice.made(memory=memory, recommended=recommended, asked=asked, reason=reason, message=message)


def _count(replicas: int) -> str:
    return f"{replicas} replica" if replicas == 1 else f"{replicas} replicas"


def _requests(number: float) -> str:
    return "1 request" if round(number) == 1 else f"{number:.0f} requests"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
