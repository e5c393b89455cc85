"""The fast loop: the token budget and the number of sequences that keep a full step within the TPOT threshold.

    budget     B = n + (T − a − c·n − d·ctx) / β         what is left beside n decoding sequences goes to prefill
    sequences  S = 1.25 · (T − a) / (c + d·ctx + b·I/O)   the batch that prefill can just keep filled, as a safety cap

with T = 0.95 · threshold · guard. TPOT is a mean over a whole answer, so single steps may be longer than the threshold:
the guard finds out by how much. It rises while prompts queue and hardly an answer is late, and falls while more are
late than the objective lets TPOT have. While the queue threatens the TTFT, the budget rises at once and for as long.

The surprising idea: limits live on a ladder, rungs `maxStepPercent` apart from the envelope's top. One adjustment moves
one rung, and only when the ideal value has left the rung by a margin, so that a steady world leaves the limits alone.
"""

from typing import Final

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.spec import BatchLimitsPolicy
from capstan_operator.decide.bank import BURST_WAIT
from capstan_operator.decide.engine_model import EngineModel
from capstan_operator.decide.signals import Lengths, Signals
from capstan_operator.decide.values import Value

HEADROOM: Final = 0.95
_BURST: Final = 4
# Between the last turn that saw prompts queue and the end of the higher budget.
_BURST_HOLD_S: Final = 4.0
# Of the TTFT threshold: queueing prompts that take more are a reason to find out how long steps may be.
_PRESSING: Final = 0.15
_SEQUENCE_SLACK: Final = 1.25
_KV_SHARE: Final = 0.95
_LARGEST_MARGIN: Final = 0.08
_GUARD_BOUNDS: Final = (0.5, 3.0)
_GUARD_UP, _GUARD_DOWN = 1.05, 0.93
_LATE_HALF_LIFE_S: Final = 120.0
# Of what an objective allows, the share that TPOT may use up; the rest is for the TTFT.
TPOT_SHARE: Final = 0.3
_ENOUGH_REQUESTS: Final = 8


class Target(Value):
    """The tightest TPOT threshold, and how answers that ended since the last turn stand to their own."""

    threshold_s: float
    ended: float = 0
    late: float = 0
    """In units of what the classes' objectives let TPOT have: as many as `ended` use it up."""


class LimitsMemory(Value):
    """The limits decided last, and the feedback that they rest on."""

    limits: BatchLimits | None = None
    adjusted_at: float | None = None
    changed_at: float | None = None
    guard: float = 1.0
    ended: float = 0
    late: float = 0
    """As in `Target`, of the last minutes."""
    late_now: bool = False
    pressed: bool = False
    """Since the last adjustment: more was late than may be; prompts queued."""
    hurried_at: float | None = None
    """When the queue was last seen to threaten the TTFT."""
    burst: BatchLimits | None = None
    """In force instead of `limits` while it does."""
    reason: str = "EnvelopeTop"
    message: str = ""

    @property
    def in_force(self) -> BatchLimits | None:
        return self.burst or self.limits

    def allows(self, limits: BatchLimits, envelope: Envelope) -> bool:
        """Whether an engine with these limits does as it was told; bursts come and go faster than it is looked at."""
        decided = [envelope.clamp(each) for each in (self.limits, self.burst) if each is not None]
        return any(
            limits.max_sequences == each.max_sequences
            and each.max_batched_tokens <= limits.max_batched_tokens <= burst_budget(each.max_batched_tokens, envelope)
            for each in decided
        )


class Advice(Value):
    memory: LimitsMemory
    previous: BatchLimits | None = None
    """Set when the limits changed."""


def burst_budget(budget: float, envelope: Envelope) -> int:
    """Token budget while prompts queue, from the one while none does."""
    return round(min(_BURST * budget, envelope.max_batched_tokens))


def ladder(top: int, bottom: int, step_percent: int) -> tuple[int, ...]:
    """Falling rungs from `top` to `bottom`, each `step_percent` below the one above, and at least one."""
    rungs = [top]
    while rungs[-1] > bottom:
        rungs.append(max(bottom, min(rungs[-1] - 1, round(rungs[-1] / (1 + step_percent / 100)))))
    return tuple(rungs)


def move(current: int, ideal: float, rungs: tuple[int, ...], step_percent: int) -> int:
    """The rung after one adjustment: one up or down, or `current` while `ideal` is within the margin around it."""
    margin = min(_LARGEST_MARGIN, step_percent / 300)
    above = min((r for r in rungs if r > current), default=current)
    below = max((r for r in rungs if r < current), default=current)
    if ideal < current * (1 - margin):
        return below
    # Nothing lies above the top: reaching it has to be enough.
    return above if ideal >= min(above * (1 + margin), rungs[0]) else current


class Situation(Value):
    """Everything that the fast loop looks at in one adjustment."""

    model: EngineModel
    lengths: Lengths
    signals: Signals
    token_s: float
    """Seconds per prefill token at the usual depth."""
    target: Target | None = None
    ttft_s: float | None = None
    """The tightest TTFT threshold."""
    num_ready: int = 1
    seconds: float = 0
    """Since the last turn."""
    kv_tokens: float = 0
    """KV slots of one replica; 0 when not known."""

    @property
    def is_known(self) -> bool:
        return self.signals.gateway_seen and self.model.is_usable and self.lengths.is_known

    @property
    def queue_s(self) -> float:
        """How long the prompts that wait take to be computed."""
        waiting = self.signals.prefill_backlog + self.signals.held * self.lengths.computed_prompt
        return self.token_s * waiting / max(1, self.num_ready)


def adjust(
    memory: LimitsMemory, situation: Situation, envelope: Envelope, policy: BatchLimitsPolicy, now: float
) -> Advice:
    """One turn of the fast loop. Without anything to go by, or between two adjustments, the limits stay."""
    current = envelope.clamp(memory.limits or envelope.top)
    memory = memory.model_copy(update={"limits": current})
    if situation.is_known:
        memory = _watched(memory, situation, now)
    advice = _adjusted(memory, situation, envelope, policy, now)
    return advice.model_copy(update={"memory": _hurried(advice.memory, envelope, now)})


def _adjusted(
    memory: LimitsMemory, situation: Situation, envelope: Envelope, policy: BatchLimitsPolicy, now: float
) -> Advice:
    current = memory.limits or envelope.top
    too_early = memory.adjusted_at is not None and now - memory.adjusted_at < policy.adjustment_interval_seconds
    if too_early or not situation.is_known:
        return Advice(memory=memory)
    step_percent, guard = policy.max_step_percent, _guarded(memory)
    tokens, sequences = _ideal(situation, envelope, guard)
    token_rungs = ladder(envelope.max_batched_tokens, envelope.min_batched_tokens, step_percent)
    sequence_rungs = ladder(envelope.max_sequences, envelope.min_sequences, step_percent)
    wanted = BatchLimits(
        max_batched_tokens=move(current.max_batched_tokens, tokens, token_rungs, step_percent),
        max_sequences=move(current.max_sequences, sequences, sequence_rungs, step_percent),
    )
    # Every running request needs a token a step.
    if wanted.max_batched_tokens < wanted.max_sequences:
        fitting = max(wanted.max_batched_tokens, envelope.min_sequences)
        wanted = BatchLimits(max_batched_tokens=max(wanted.max_batched_tokens, fitting), max_sequences=fitting)
    memory = memory.model_copy(update={"adjusted_at": now, "guard": guard, "late_now": False, "pressed": False})
    if wanted == current:
        return Advice(memory=memory)
    reason, because = _explained(current, wanted, situation, memory)
    changes = [
        f"{name} {before} → {after}"
        for name, before, after in (
            ("token budget", current.max_batched_tokens, wanted.max_batched_tokens),
            ("sequences", current.max_sequences, wanted.max_sequences),
        )
        if before != after
    ]
    message = f"{because}: {', '.join(changes)}"
    return Advice(
        memory=memory.model_copy(update={"limits": wanted, "changed_at": now, "reason": reason, "message": message}),
        previous=current,
    )


def _watched(memory: LimitsMemory, situation: Situation, now: float) -> LimitsMemory:
    """The memory after what ended, and what waits, was counted."""
    target, kept = situation.target, 0.5 ** (situation.seconds / _LATE_HALF_LIFE_S)
    ended, late = (target.ended, target.late) if target is not None else (0.0, 0.0)
    queue_s, ttft_s = situation.queue_s, situation.ttft_s
    threatened = ttft_s is not None and queue_s > BURST_WAIT * ttft_s
    return memory.model_copy(
        update={
            "ended": kept * memory.ended + ended,
            "late": kept * memory.late + late,
            "late_now": memory.late_now or late > ended,
            "pressed": memory.pressed or (ttft_s is not None and queue_s > _PRESSING * ttft_s),
            "hurried_at": now if threatened else memory.hurried_at,
        }
    )


def _hurried(memory: LimitsMemory, envelope: Envelope, now: float) -> LimitsMemory:
    """The memory with the limits for a queue that threatens the TTFT, while there is one."""
    limits = memory.limits
    if limits is None or memory.hurried_at is None or now - memory.hurried_at > _BURST_HOLD_S:
        return memory.model_copy(update={"burst": None})
    raised = limits.model_copy(update={"max_batched_tokens": burst_budget(limits.max_batched_tokens, envelope)})
    return memory.model_copy(update={"burst": raised if raised != limits else None})


def _guarded(memory: LimitsMemory) -> float:
    low, high = _GUARD_BOUNDS
    if memory.ended < _ENOUGH_REQUESTS:
        return memory.guard
    if memory.late > memory.ended:
        return max(low, memory.guard * _GUARD_DOWN) if memory.late_now else memory.guard
    if memory.pressed:
        return min(high, memory.guard * _GUARD_UP)
    # Without a queue there is nothing to be gained above the model's own value.
    return max(memory.guard, min(1.0, memory.guard * _GUARD_UP))


def _ideal(situation: Situation, envelope: Envelope, guard: float) -> tuple[float, float]:
    """Token budget and sequences that the thresholds and the KV cache allow, wherever the limits are now."""
    model, lengths, signals = situation.model, situation.lengths, situation.signals
    target, kv_tokens = situation.target, situation.kv_tokens
    tokens, sequences = float(envelope.max_batched_tokens), float(envelope.max_sequences)
    if target is not None:
        goal_s = HEADROOM * guard * target.threshold_s
        n, context = signals.decode_sequences, signals.context_tokens
        tokens = n + max(0.0, goal_s - model.step_seconds(0, n, context)) / situation.token_s
        sequences = _SEQUENCE_SLACK * sustained_batch(model, lengths, goal_s)
    if kv_tokens > 0:
        # A safety cap, by the mean request: engines admit no more than really fit.
        sequences = min(sequences, _KV_SHARE * kv_tokens / max(lengths.context, 1))
    return tokens, sequences


def sustained_batch(model: EngineModel, lengths: Lengths, step_s: float) -> float:
    """Sequences that can decode for ever in steps of `step_s`, when each step also prefills those that take over."""
    refill_s = model.prefill_token_seconds(lengths.prompt) * lengths.computed_prompt / max(1.0, lengths.output)
    return max(0.0, step_s - model.coefficients[0]) / max(1e-9, model.sequence_seconds(lengths.context) + refill_s)


def requests_per_s(
    model: EngineModel, lengths: Lengths, threshold_s: float | None, max_sequences: int, kv_tokens: float
) -> float:
    """What one replica serves when it is loaded as far as TPOT and KV allow, and no TTFT is asked for."""
    sequences = float(max_sequences)
    if threshold_s is not None:
        sequences = min(sequences, sustained_batch(model, lengths, HEADROOM * threshold_s))
    if kv_tokens > 0:
        sequences = min(sequences, kv_tokens / max(1.0, lengths.context))
    sequences = max(1.0, sequences)
    refill_s = model.prefill_token_seconds(lengths.prompt) * sequences * lengths.computed_prompt / lengths.output
    step_s = model.step_seconds(0, sequences, sequences * lengths.context) + refill_s
    return sequences / (lengths.output * max(step_s, 1e-6))


def _explained(
    current: BatchLimits, wanted: BatchLimits, situation: Situation, memory: LimitsMemory
) -> tuple[str, str]:
    """Reason and clause for a change."""
    target, signals = situation.target, situation.signals
    lowered = wanted.max_batched_tokens < current.max_batched_tokens or wanted.max_sequences < current.max_sequences
    if target is None and lowered:
        return "KvCacheFull", "the KV cache holds fewer sequences"
    if target is None:
        return "NoTpotThreshold", "no TPOT is asked for"
    if lowered and memory.ended >= _ENOUGH_REQUESTS and memory.late > memory.ended:
        return "TpotOverThreshold", f"more answers than may be are slower than {_ms(target.threshold_s)} per token"
    goal_s = HEADROOM * memory.guard * target.threshold_s
    n = signals.decode_sequences
    if lowered and wanted.max_batched_tokens < current.max_batched_tokens:
        prefill_s = (current.max_batched_tokens - n) * situation.token_s
        full_s = situation.model.step_seconds(0, n, signals.context_tokens) + max(0.0, prefill_s)
        return "TpotPredicted", (
            f"a step of {current.max_batched_tokens} tokens with {_sequences(n)} "
            f"is predicted to take {_ms(full_s)} > {_ms(goal_s)}"
        )
    if lowered:
        return "SustainableBatch", f"more sequences than a step of {_ms(goal_s)} can keep fed"
    return "TpotHeadroom", f"with {_sequences(n)} a step has room within {_ms(goal_s)}"


def _sequences(n: float) -> str:
    return "1 decoding sequence" if round(n) == 1 else f"{n:.0f} decoding sequences"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
