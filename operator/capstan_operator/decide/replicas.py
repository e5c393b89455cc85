"""The slow loop: how many replicas, from arriving work, the queue and the latencies that clients really saw.

    capacity   μ = n* / (O · step(n*))           requests/s of one replica at the batch n* that TPOT and KV allow
    demand     D = λ / μ                          replicas that would be busy all the time
    need         = D / 0.65 + queue / (μ · 10 s)

Up when the need, or a missed threshold that limits cannot cure, lasts for the scale-up window; down when the remaining
replicas were predicted to be under 45 % busy during the whole scale-down window.

The surprising idea: one streak per direction replaces a history. It knows since when every turn asked for a change, and
the most cautious answer among them; that is all that a stabilization window needs, in constant space.
"""

import math
from collections.abc import Callable

from capstan_api.spec import Mode, Scaling
from capstan_operator.decide.batch_limits import HEADROOM, LimitsMemory, Target, sustained_batch
from capstan_operator.decide.engine_model import EngineModel
from capstan_operator.decide.signals import Lengths, Signals
from capstan_operator.decide.values import Value

UP_UTILISATION = 0.65
DOWN_UTILISATION = 0.45
_SHORTEST_DRAIN_S = 10.0
# A need that is a tenth of a replica over a whole number does not pay for a replica.
_TOLERANCE = 0.1
_ENOUGH_REQUESTS = 4


class Streak(Value):
    """Every turn since `since` asked for a change in the same direction; `level` is the nearest that was asked for."""

    since: float
    at: float
    level: int


class ReplicasMemory(Value):
    wanted: int | None = None
    up: Streak | None = None
    down: Streak | None = None
    active_at: float | None = None
    """When a request was last seen, or could not be ruled out."""


class Missed(Value):
    """A TTFT threshold that the window's requests missed."""

    percentile: int
    measured_s: float
    threshold_s: float


class Capacity(Value):
    """One replica, loaded as far as TPOT and KV allow."""

    sequences: float
    step_s: float
    requests_per_s: float


class Advice(Value):
    memory: ReplicasMemory
    recommended: int
    """What mode Auto would want at once, without stabilization."""
    reason: str
    message: str


def capacity(
    model: EngineModel, lengths: Lengths, target: Target | None, max_sequences: int, kv_tokens: float
) -> Capacity | None:
    """What one replica can serve; None until the model and the lengths are known."""
    if not (model.is_usable and lengths.is_known):
        return None
    sequences = float(max_sequences)
    if target is not None:
        sequences = min(sequences, sustained_batch(model, lengths, HEADROOM * target.threshold_s))
    if kv_tokens > 0:
        sequences = min(sequences, kv_tokens / max(1.0, lengths.context))
    sequences = max(1.0, sequences)
    refill = sequences * lengths.computed_prompt / lengths.output
    token_s = model.prefill_token_seconds(lengths.prompt)
    step_s = model.step_seconds(0, sequences, sequences * lengths.context) + refill * token_s
    return Capacity(sequences=sequences, step_s=step_s, requests_per_s=sequences / (lengths.output * max(step_s, 1e-6)))


class Situation(Value):
    """Everything that the slow loop looks at in one turn."""

    signals: Signals
    limits: LimitsMemory
    serves: Capacity | None = None
    missed: Missed | None = None
    tpot: Target | None = None
    num_live: int = 0
    """Replicas that are not draining: pending, starting, ready or failed."""
    num_ready: int = 0
    num_overdue: int = 0
    """Replicas that have been pending for too long to be counted on."""
    startup_s: float | None = None

    @property
    def demand(self) -> float | None:
        """Replicas' worth of work that arrives; None when it cannot be told."""
        rate = self.signals.arrivals_per_s
        return rate / self.serves.requests_per_s if self.serves is not None and rate is not None else None

    @property
    def backlog(self) -> float:
        """Replicas that it takes to work off the queue while one could be started."""
        if self.serves is None:
            return 0.0
        return self.signals.queue / (self.serves.requests_per_s * max(_SHORTEST_DRAIN_S, self.startup_s or 0))

    @property
    def need(self) -> float | None:
        return None if self.demand is None else self.demand / UP_UTILISATION + self.backlog


def advise(memory: ReplicasMemory, situation: Situation, scaling: Scaling, now: float) -> Advice:
    """How many replicas to have from now on, and why. Never down on missing data."""
    signals = situation.signals
    low, high = scaling.min_replicas, scaling.max_replicas
    # A fleet that is only being made cannot be idle: it would end the replica that it has just begun.
    is_loading = situation.num_live > situation.num_overdue and situation.num_ready == 0
    active_at = now if signals.active or is_loading or memory.active_at is None else memory.active_at
    memory = memory.model_copy(update={"active_at": active_at})
    if scaling.mode is Mode.MANUAL and scaling.replicas is not None:
        return _settled(memory, scaling.replicas, "Manual", f"{_count(scaling.replicas)} asked for by hand")
    if memory.wanted is None:
        first = min(high, max(1, low, situation.num_live))
        return _settled(memory, first, "Initial", f"starting with {_count(first)}")
    current = min(max(memory.wanted, low), high)
    if current != memory.wanted:
        bound = "maxReplicas" if current < memory.wanted else "minReplicas"
        return _settled(memory, current, "OutOfBounds", f"{bound} is {current}: {memory.wanted} → {_count(current)}")
    if not signals.gateway_seen:
        return _held(memory, current, "MetricsMissing", f"no word from the gateway: {_count(current)} kept")

    if current == 0:
        if not signals.active:
            return _held(memory, 0, "Idle", "no request: scaled to zero")
        woken = min(high, max(1, math.ceil((situation.need or 1) - _TOLERANCE)))
        cause = f"{_requests(signals.held)} held" if signals.held >= 1 else "a request arrived"
        return _settled(memory, woken, "RequestsHeld", f"{cause}: 0 → {_count(woken)}")
    idle_s = now - active_at
    if low == 0 and idle_s >= scaling.idle.scale_to_zero_after_seconds:
        return _settled(memory, 0, "Idle", f"no request for {idle_s:.0f} s: {current} → 0 replicas")

    asked, reason, because = _asked(current, situation)
    wanted = min(max(asked, low, 1), high)
    if wanted < asked:
        reason, because = "MaxReplicas", f"{because}; maxReplicas is {high}"
    if wanted > current and situation.num_overdue:
        # One more would stand in the same queue; until there is room, the limits protect what is served.
        without = f"{because}, but {_count(situation.num_overdue)} found no room to run: {_count(current)} kept"
        return Advice(memory=memory, recommended=wanted, reason="CapacityUnavailable", message=without)
    if wanted < current and not signals.complete:
        missing = signals.missing or "a replica"
        return _held(memory, current, "MetricsMissing", f"{missing} could not be measured: {_count(current)} kept")
    return _stabilized(memory, scaling, current, wanted, reason, because, now)


def _asked(current: int, situation: Situation) -> tuple[int, str, str]:
    """Replicas, reason and clause that this turn alone asks for."""
    signals, serves, missed, tpot = situation.signals, situation.serves, situation.missed, situation.tpot
    demand, need = situation.demand, situation.need
    wanted = math.ceil(need - _TOLERANCE) if need is not None else current
    # More replicas are the remedy once limits have done what they can, and one more than serve now: those that are
    # still starting may well be the cure already.
    more = max(wanted, min(situation.num_ready, current) + 1)
    if missed is not None and signals.queue > 0 and not situation.limits.has_room:
        clause = f"TTFT p{missed.percentile} {_ms(missed.measured_s)} > {_ms(missed.threshold_s)}"
        return more, "TtftOverThreshold", f"{clause} with {_requests(signals.queue)} waiting"
    over_tpot = tpot is not None and tpot.ratio is not None and tpot.ratio > 1
    if tpot is not None and tpot.measured_s is not None and over_tpot and situation.limits.at_floor:
        clause = f"TPOT p{tpot.percentile} {_ms(tpot.measured_s)} > {_ms(tpot.class_threshold_s)}"
        return more, "TpotOverThreshold", f"{clause} with limits at their lowest"
    rate = f"{signals.arrivals_per_s:.2g} requests/s" if signals.arrivals_per_s is not None else "arrivals unknown"
    if need is None or demand is None or serves is None:
        return current, "CapacityUnknown", f"{_count(current)}: {rate}, what one can serve is not yet known"
    if wanted > current:
        queued = f" and {signals.queue:.0f} waiting" if signals.queue >= 1 else ""
        return wanted, "Demand", f"{rate}{queued} need {need:.1f} replicas of {serves.requests_per_s:.2g} requests/s"
    fewest = max(1, math.ceil(demand / DOWN_UTILISATION + situation.backlog))
    if fewest < current and missed is None and not over_tpot:
        return fewest, "SpareCapacity", f"{_count(fewest)} would be {demand / fewest:.0%} busy with {rate}"
    return current, "WithinTargets", f"{_count(current)} {demand / current:.0%} busy with {rate}"


def _stabilized(
    memory: ReplicasMemory, scaling: Scaling, current: int, wanted: int, reason: str, because: str, now: float
) -> Advice:
    """What is asked for, once every turn of the window has asked for it or for more."""
    hole_s = float(scaling.stale_metrics.max_age_seconds)
    up = _continued(memory.up, wanted if wanted > current else None, now, hole_s, min)
    down = _continued(memory.down, wanted if wanted < current else None, now, hole_s, max)
    memory = memory.model_copy(update={"up": up, "down": down})
    streak, behavior = up or down, scaling.behavior
    if streak is None:
        return _held(memory, current, reason, because)
    window_s = (behavior.scale_up if up else behavior.scale_down).stabilization_window_seconds
    if now - streak.since < window_s:
        pending = f"{because}: {_count(wanted)} if it lasts {window_s} s"
        return Advice(memory=memory, recommended=wanted, reason=f"{reason}Pending", message=pending)
    lasting = f" for {window_s} s" if down and window_s else ""
    sentence = f"{because}{lasting}: {current} → {_count(streak.level)}"
    return _settled(memory, streak.level, reason, sentence)


def _continued(
    streak: Streak | None, level: int | None, now: float, hole_s: float, nearest: Callable[[int, int], int]
) -> Streak | None:
    """The streak after this turn; a gap in the measurements longer than `hole_s` begins it anew."""
    if level is None:
        return None
    if streak is None or now - streak.at > hole_s:
        return Streak(since=now, at=now, level=level)
    return Streak(since=streak.since, at=now, level=nearest(streak.level, level))


def _settled(memory: ReplicasMemory, wanted: int, reason: str, message: str) -> Advice:
    settled = memory.model_copy(update={"wanted": wanted, "up": None, "down": None})
    return Advice(memory=settled, recommended=wanted, reason=reason, message=message)


def _held(memory: ReplicasMemory, current: int, reason: str, message: str) -> Advice:
    return Advice(memory=memory, recommended=current, reason=reason, message=message)


def _count(replicas: int) -> str:
    return f"{replicas} replica" if replicas == 1 else f"{replicas} replicas"


def _requests(number: float) -> str:
    return "1 request" if round(number) == 1 else f"{number:.0f} requests"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
