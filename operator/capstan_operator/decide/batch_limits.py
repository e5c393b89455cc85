"""The fast loop: the token budget and the number of sequences that keep a full step within the TPOT threshold.

    budget     B = n + (T − a − c·n − d·ctx) / b         what is left beside n decoding sequences goes to prefill
    sequences  S = 1.25 · (T − a) / (c + d·ctx + b·I/O)   the batch that prefill can just keep filled, as a safety cap

with T = 0.9 · threshold · guard. The guard is the feedback: it falls while the measured percentile is over the
threshold and steps are really long, and rises while prefill queues although TPOT is well under.

The surprising idea: limits live on a ladder, rungs `maxStepPercent` apart from the envelope's top. One adjustment moves
one rung, and only when the ideal value has left the rung by a margin, so that a steady world leaves the limits alone.
"""

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.spec import BatchLimitsPolicy
from capstan_operator.decide.engine_model import EngineModel
from capstan_operator.decide.signals import Lengths, Signals
from capstan_operator.decide.values import Value

HEADROOM = 0.9
_SEQUENCE_SLACK = 1.25
_KV_SHARE = 0.95
# Finished requests without which a percentile says nothing.
_ENOUGH_REQUESTS = 8
_LARGEST_MARGIN = 0.08
_GUARD_BOUNDS = (0.6, 1.3)
# Of the threshold: while the mean gap between tokens is under this, steps are not what keeps requests slow.
_SHORT_STEPS = 0.7


class Target(Value):
    """The tightest TPOT threshold, and how the class that is worst off against its own stands."""

    threshold_s: float
    percentile: int = 95
    class_threshold_s: float
    measured_s: float | None = None
    num_measured: float = 0

    @property
    def ratio(self) -> float | None:
        """Measured over threshold; None without enough finished requests."""
        if self.measured_s is None or self.num_measured < _ENOUGH_REQUESTS:
            return None
        return self.measured_s / self.class_threshold_s


class LimitsMemory(Value):
    """The limits decided last, and the feedback that they rest on."""

    limits: BatchLimits | None = None
    adjusted_at: float | None = None
    changed_at: float | None = None
    guard: float = 1.0
    has_room: bool = False
    """The law would go on raising: more replicas are not the first remedy."""
    at_floor: bool = False
    """The law would go on lowering, but the envelope ends: limits can do no more."""
    reason: str = "EnvelopeTop"
    message: str = ""


class Advice(Value):
    memory: LimitsMemory
    previous: BatchLimits | None = None
    """Set when the limits changed."""


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
    target: Target | None = None
    kv_tokens: float = 0
    """KV slots of one replica; 0 when not known."""

    @property
    def is_known(self) -> bool:
        return self.signals.gateway_seen and self.model.is_usable and self.lengths.is_known


def adjust(
    memory: LimitsMemory, situation: Situation, envelope: Envelope, policy: BatchLimitsPolicy, now: float
) -> Advice:
    """One turn of the fast loop. Without anything to go by, or between two adjustments, the limits stay."""
    current = envelope.clamp(memory.limits or envelope.top)
    memory = memory.model_copy(update={"limits": current})
    if memory.adjusted_at is not None and now - memory.adjusted_at < policy.adjustment_interval_seconds:
        return Advice(memory=memory)
    if not situation.is_known:
        return Advice(memory=memory.model_copy(update={"has_room": False, "at_floor": False}))

    step_percent = policy.max_step_percent
    guard = _guarded(memory.guard, situation)
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
    adjusted = memory.model_copy(
        update={
            "adjusted_at": now,
            "guard": guard,
            "has_room": wanted.max_batched_tokens > current.max_batched_tokens
            or wanted.max_sequences > current.max_sequences,
            "at_floor": current.max_batched_tokens == token_rungs[-1] and tokens < token_rungs[-1],
        }
    )
    if wanted == current:
        return Advice(memory=adjusted)
    reason, because = _explained(current, wanted, situation, guard)
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
        memory=adjusted.model_copy(update={"limits": wanted, "changed_at": now, "reason": reason, "message": message}),
        previous=current,
    )


def _guarded(guard: float, situation: Situation) -> float:
    target, signals = situation.target, situation.signals
    ratio = target.ratio if target else None
    if target is None or ratio is None:
        return guard
    # Percentiles of finished requests look back over their whole lives: what steps take now has a say too.
    long_now = signals.inter_token_s is None or signals.inter_token_s > _SHORT_STEPS * target.threshold_s
    low, high = _GUARD_BOUNDS
    if ratio > 1 and long_now:
        return max(low, guard * 0.93)
    if guard < 1 and (ratio < 0.95 or not long_now):
        return min(1.0, guard * 1.05)
    if ratio < 0.85 and signals.queue > 0:
        return min(high, guard * 1.03)
    return guard


def _ideal(situation: Situation, envelope: Envelope, guard: float) -> tuple[float, float]:
    """Token budget and sequences that the thresholds and the KV cache allow, wherever the limits are now."""
    model, lengths, signals = situation.model, situation.lengths, situation.signals
    target, kv_tokens = situation.target, situation.kv_tokens
    tokens, sequences = float(envelope.max_batched_tokens), float(envelope.max_sequences)
    if target is not None:
        goal_s = HEADROOM * guard * target.threshold_s
        n, context = signals.decode_sequences, signals.context_tokens
        token_s = model.prefill_token_seconds(lengths.prompt)
        tokens = n + max(0.0, goal_s - model.step_seconds(0, n, context)) / token_s
        sequences = _SEQUENCE_SLACK * sustained_batch(model, lengths, goal_s)
    if kv_tokens > 0:
        # The contexts of running sequences, long ones over-represented, where any are running.
        per_sequence = signals.context_tokens / signals.decode_sequences if signals.decode_sequences >= 1 else 0
        sequences = min(sequences, _KV_SHARE * kv_tokens / max(per_sequence, lengths.context, 1))
    return tokens, sequences


def sustained_batch(model: EngineModel, lengths: Lengths, step_s: float) -> float:
    """Sequences that can decode for ever in steps of `step_s`, when each step also prefills those that take over."""
    refill_s = model.prefill_token_seconds(lengths.prompt) * lengths.computed_prompt / max(1.0, lengths.output)
    return max(0.0, step_s - model.coefficients[0]) / max(1e-9, model.sequence_seconds(lengths.context) + refill_s)


def _explained(current: BatchLimits, wanted: BatchLimits, situation: Situation, guard: float) -> tuple[str, str]:
    """Reason and clause for a change."""
    target, signals = situation.target, situation.signals
    lowered = wanted.max_batched_tokens < current.max_batched_tokens or wanted.max_sequences < current.max_sequences
    if target is None and lowered:
        return "KvCacheFull", "the KV cache holds fewer sequences"
    if target is None:
        return "NoTpotThreshold", "no TPOT is asked for"
    ratio = target.ratio
    if lowered and ratio is not None and ratio > 1 and target.measured_s is not None:
        seen = f"TPOT p{target.percentile} {_ms(target.measured_s)} > {_ms(target.class_threshold_s)}"
        return "TpotOverThreshold", seen
    goal_s = HEADROOM * guard * target.threshold_s
    n = signals.decode_sequences
    if lowered and wanted.max_batched_tokens < current.max_batched_tokens:
        prefill_s = (current.max_batched_tokens - n) * situation.model.prefill_token_seconds(situation.lengths.prompt)
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
