"""The fast loop: the token budget and the number of sequences that keep a full step within the TPOT threshold.

    budget     B = n + (T − a − c·n − d·ctx) / β         what is left beside n decoding sequences goes to prefill
    sequences  S = (T − a) / (c + d·ctx + b·I/O)          the batch that prefill can just keep filled, as a safety cap:
                                                          anything from 1.1 to 1.5 of it will do

with T = 0.95 · threshold · guard. TPOT is a mean over a whole answer, so single steps may be longer than the threshold:
the guard finds out by how much. It rises while prompts queue and hardly an answer is late, and falls while more are
late than the objective lets TPOT have. While the queue threatens the TTFT, the budget rises at once and for as long.

One adjustment moves one rung of the ladder. What protects answers that are being given is in force everywhere at once;
everything else is tried on one replica first, where there are several. While others warm up nothing is loosened, and
the higher budget ends once it can save no TTFT: it would only take the TPOT of those who were admitted.

The surprising idea: what is not carried out is not learnt from. While a step waits for its trial the guard may fall and
not rise, or it would have run away by the time at which the trial ends.
"""

from typing import Final

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.spec import BatchLimitsPolicy
from capstan_operator.decide.bank import BURST_WAIT
from capstan_operator.decide.canary import Fleet, Outcome, Verdict
from capstan_operator.decide.capacity import HEADROOM, sustained_batch
from capstan_operator.decide.engine_model import EngineModel
from capstan_operator.decide.ladder import LARGEST_MARGIN, ladder, move
from capstan_operator.decide.limits_memory import Change, LimitsMemory, burst
from capstan_operator.decide.signals import Lengths, Signals
from capstan_operator.decide.values import Value

# Between the last turn that saw prompts queue and the end of the higher budget.
_BURST_HOLD_S: Final = 4.0
# Of the TTFT threshold: queueing prompts that take more are a reason to find out how long steps may be.
_PRESSING: Final = 0.15
_SEQUENCE_SLACK: Final = (1.1, 1.5)
_KV_SHARE: Final = 0.95
_GUARD_BOUNDS: Final = (0.5, 3.0)
_GUARD_UP, _GUARD_DOWN = 1.05, 0.93
_LATE_HALF_LIFE_S: Final = 120.0
# Of what an objective allows, the share that TPOT may use up; the rest is for the TTFT.
TPOT_SHARE: Final = 0.3
_ENOUGH_REQUESTS: Final = 8
# In mean answers: how long after a move of the limits those that end have mostly begun under others.
_STALE_ANSWERS, _LEAST_STALE_S = 2.0, 10.0


class Target(Value):
    """The tightest TPOT threshold, and how answers that ended since the last turn stand to their own."""

    threshold_s: float
    ended: float = 0
    late: float = 0
    """In units of what the classes' objectives let TPOT have: as many as `ended` use it up."""


class Advice(Value):
    memory: LimitsMemory
    change: Change | None = None
    verdict: Verdict | None = None
    """Of a trial that has just ended."""


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
    is_warming: bool = False
    """Others are being started beside those that serve."""

    @property
    def is_known(self) -> bool:
        return self.signals.gateway_seen and self.model.is_usable and self.lengths.is_known

    @property
    def is_lost(self) -> bool:
        """Whether prompts that come now will miss their TTFT, however long the steps are made."""
        return self.ttft_s is not None and self.queue_s > self.ttft_s

    @property
    def queue_s(self) -> float:
        """How long the prompts that wait take to be computed."""
        waiting = self.signals.prefill_backlog + self.signals.held * self.lengths.computed_prompt
        return self.token_s * waiting / max(1, self.num_ready)


def adjust(
    memory: LimitsMemory,
    situation: Situation,
    fleet: Fleet,
    envelope: Envelope,
    policy: BatchLimitsPolicy,
    now: float,
) -> Advice:
    """One turn of the fast loop. Without anything to go by, or between two adjustments, the limits stay."""
    canary, verdict = memory.canary.watched(fleet, now).followed(fleet, now)
    current = envelope.clamp(memory.limits or envelope.top)
    memory = memory.model_copy(update={"limits": current, "canary": canary})
    if situation.is_known:
        memory = _watched(memory, situation, fleet.answer_s, now)
    if verdict is not None:
        advice = _concluded(memory, verdict, envelope, now)
    else:
        advice = _adjusted(memory, situation, fleet, envelope, policy, now)
    return advice.model_copy(update={"memory": _hurried(advice.memory, situation, envelope, now)})


def _adjusted(
    memory: LimitsMemory,
    situation: Situation,
    fleet: Fleet,
    envelope: Envelope,
    policy: BatchLimitsPolicy,
    now: float,
) -> Advice:
    current = memory.limits or envelope.top
    too_early = memory.adjusted_at is not None and now - memory.adjusted_at < policy.adjustment_interval_seconds
    if too_early or not situation.is_known:
        return Advice(memory=memory)
    before, guard = memory.guard, _guarded(memory)
    if (
        guard < before
        and _ideal(situation, current, envelope, before)[0] < (1 - LARGEST_MARGIN) * current.max_batched_tokens
    ):
        # The model asks for less already: late answers are no news, and no fault of its.
        guard = before
    # A queue that has lost its TTFT fills every step: no shorter ones make up for those above the threshold.
    asked = min(guard, 1.0) if situation.is_warming and situation.is_lost else guard
    ideal = _ideal(situation, current, envelope, asked)
    wanted = _wanted(current, ideal, envelope, policy)
    is_late = _is_late(memory)
    memory = memory.model_copy(update={"adjusted_at": now, "guard": guard, "late_now": False, "pressed": False})
    kept = Advice(memory=memory.model_copy(update={"guard": min(before, guard)}))
    lower = _lower(current, wanted)
    if lower.max_batched_tokens < current.max_batched_tokens or (is_late and lower != current):
        # Those that are being answered cannot wait for a trial, and a trial of more is over.
        canary = memory.canary.reverted(current, lower, now, was_measured=guard < before)
        memory = memory.model_copy(update={"canary": canary})
        return _changed(memory, lower, *_explained(current, lower, situation, asked, is_late=is_late), now)
    trial = memory.canary.trial
    if trial is not None:
        if _stands(trial.limits, trial.instead_of, ideal):
            return kept
        canary, verdict = memory.canary.ended("no more is asked for by now", now)
        return _concluded(kept.memory.model_copy(update={"canary": canary}), verdict, envelope, now)
    if wanted == current:
        return Advice(memory=memory)
    reason, because = _explained(current, wanted, situation, asked, is_late=is_late)
    if situation.is_warming or memory.canary.refuses(wanted, current, now):
        return kept
    if len(fleet.serving(now)) < 2:
        return _changed(memory, wanted, reason, because, now)
    begun = memory.canary.begin(wanted, current, fleet, now)
    if begun is None or begun.trial is None:
        return kept
    message = f"tried on {begun.trial.replica} first, {because}: {_step(current, wanted)}"
    change = Change(reason=Outcome.TRIED, message=message, old=current, new=wanted)
    return Advice(memory=_told(kept.memory.model_copy(update={"canary": begun}), change, now), change=change)


def _wanted(
    current: BatchLimits, ideal: tuple[float, float], envelope: Envelope, policy: BatchLimitsPolicy
) -> BatchLimits:
    """One rung towards the ideal token budget and number of sequences."""
    percent = policy.max_step_percent
    token_rungs = ladder(envelope.max_batched_tokens, envelope.min_batched_tokens, percent)
    sequence_rungs = ladder(envelope.max_sequences, envelope.min_sequences, percent)
    tokens = move(current.max_batched_tokens, ideal[0], token_rungs, percent)
    sequences = move(current.max_sequences, ideal[1], sequence_rungs, percent)
    if tokens < sequences:
        # Every running request needs a token a step.
        sequences = max(tokens, envelope.min_sequences)
        tokens = max(tokens, sequences)
    return BatchLimits(max_batched_tokens=tokens, max_sequences=sequences)


def _lower(a: BatchLimits, b: BatchLimits) -> BatchLimits:
    return BatchLimits(
        max_sequences=min(a.max_sequences, b.max_sequences),
        max_batched_tokens=min(a.max_batched_tokens, b.max_batched_tokens),
    )


def _stands(tried: BatchLimits, instead_of: BatchLimits, ideal: tuple[float, float]) -> bool:
    """Whether limits on trial would not be taken back as soon as everybody had them."""
    tokens, sequences = ideal
    more_tokens = tried.max_batched_tokens > instead_of.max_batched_tokens
    more_sequences = tried.max_sequences > instead_of.max_sequences
    low = 1 - LARGEST_MARGIN
    return not (
        (more_tokens and tokens < tried.max_batched_tokens * low)
        or (more_sequences and sequences < tried.max_sequences * low)
    )


def _concluded(memory: LimitsMemory, verdict: Verdict, envelope: Envelope, now: float) -> Advice:
    """The limits after a trial's verdict."""
    trial, current = verdict.trial, memory.limits or envelope.top
    step = _step(trial.instead_of, trial.limits)
    memory = memory.model_copy(update={"adjusted_at": now})
    if verdict.outcome is Outcome.KEPT:
        tried = envelope.clamp(trial.limits)
        change = Change(reason=verdict.outcome, message=f"{verdict.because}: {step} for all", old=current, new=tried)
        memory = memory.model_copy(update={"limits": tried, "moved_at": now})
    else:
        change = Change(
            reason=verdict.outcome, message=f"{verdict.because}: {step} taken back", old=trial.limits, new=current
        )
    return Advice(memory=_told(memory, change, now), change=change, verdict=verdict)


def _changed(memory: LimitsMemory, wanted: BatchLimits, reason: str, because: str, now: float) -> Advice:
    """Limits that all have from now on."""
    assert memory.limits is not None, "limits are set before they are changed"
    message = f"{because}: {_step(memory.limits, wanted)}"
    change = Change(reason=reason, message=message, old=memory.limits, new=wanted)
    return Advice(
        memory=_told(memory.model_copy(update={"limits": wanted, "moved_at": now}), change, now), change=change
    )


def _told(memory: LimitsMemory, change: Change, now: float) -> LimitsMemory:
    return memory.model_copy(update={"changed_at": now, "reason": change.reason, "message": change.message})


def _step(old: BatchLimits, new: BatchLimits) -> str:
    """What of the limits is different, for people."""
    parts = (
        ("token budget", old.max_batched_tokens, new.max_batched_tokens),
        ("sequences", old.max_sequences, new.max_sequences),
    )
    return ", ".join(f"{name} {before} → {after}" for name, before, after in parts if before != after)


def _watched(memory: LimitsMemory, situation: Situation, answer_s: float, now: float) -> LimitsMemory:
    """The memory after what ended, and what waits, was counted.

    Answers that began under other limits say nothing of these, nor do those that were slowed for the TTFT's sake.
    """
    target, kept = situation.target, 0.5 ** (situation.seconds / _LATE_HALF_LIFE_S)
    others = max(memory.moved_at or 0.0, memory.hurried_at or 0.0)
    counts = now - others >= max(_STALE_ANSWERS * answer_s, _LEAST_STALE_S)
    ended, late = (target.ended, target.late) if target is not None and counts else (0.0, 0.0)
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


def _hurried(memory: LimitsMemory, situation: Situation, envelope: Envelope, now: float) -> LimitsMemory:
    """The memory with the limits for a queue that threatens the TTFT, while there is one."""
    limits = memory.limits
    is_over = memory.hurried_at is None or now - memory.hurried_at > _BURST_HOLD_S
    if limits is None or is_over or (situation.is_warming and situation.is_lost):
        return memory.model_copy(update={"burst": None})
    raised = burst(limits, envelope)
    return memory.model_copy(update={"burst": raised if raised != limits else None})


def _is_late(memory: LimitsMemory) -> bool:
    """Whether more answers than may be are slower than their TPOT threshold."""
    return memory.ended >= _ENOUGH_REQUESTS and memory.late > memory.ended


def _guarded(memory: LimitsMemory) -> float:
    low, high = _GUARD_BOUNDS
    if memory.ended < _ENOUGH_REQUESTS:
        return memory.guard
    if _is_late(memory):
        return max(low, memory.guard * _GUARD_DOWN) if memory.late_now else memory.guard
    if memory.pressed:
        return min(high, memory.guard * _GUARD_UP)
    # Without a queue there is nothing to be gained above the model's own value.
    return max(memory.guard, min(1.0, memory.guard * _GUARD_UP))


def _ideal(situation: Situation, current: BatchLimits, envelope: Envelope, guard: float) -> tuple[float, float]:
    """Token budget, and the sequences nearest to the current ones, that the thresholds and the KV cache allow."""
    model, lengths, signals = situation.model, situation.lengths, situation.signals
    target, kv_tokens = situation.target, situation.kv_tokens
    tokens, sequences = float(envelope.max_batched_tokens), float(envelope.max_sequences)
    if target is not None:
        goal_s = HEADROOM * guard * target.threshold_s
        # A count that no engine may have asks for no budget beyond it.
        n, context = min(signals.decode_sequences, envelope.max_sequences), signals.context_tokens
        tokens = n + max(0.0, goal_s - model.step_seconds(0, n, context)) / situation.token_s
        fewest, most = (slack * sustained_batch(model, lengths, goal_s) for slack in _SEQUENCE_SLACK)
        sequences = min(max(float(current.max_sequences), fewest), most)
    if kv_tokens > 0:
        # A safety cap, by the mean request: engines admit no more than really fit.
        sequences = min(sequences, _KV_SHARE * kv_tokens / max(lengths.context, 1))
    return tokens, sequences


def _explained(
    current: BatchLimits, wanted: BatchLimits, situation: Situation, guard: float, *, is_late: bool
) -> tuple[str, str]:
    """Reason and clause for a change to what this guard asks for."""
    target, signals = situation.target, situation.signals
    lowered = wanted.max_batched_tokens < current.max_batched_tokens or wanted.max_sequences < current.max_sequences
    if target is None and lowered:
        return "KvCacheFull", "the KV cache holds fewer sequences"
    if target is None:
        return "NoTpotThreshold", "no TPOT is asked for"
    if lowered and is_late:
        return "TpotOverThreshold", f"more answers than may be are slower than {_ms(target.threshold_s)} per token"
    goal_s = HEADROOM * guard * target.threshold_s
    n = signals.decode_sequences
    if lowered and wanted.max_batched_tokens < current.max_batched_tokens:
        prefill_s = (current.max_batched_tokens - n) * situation.token_s
        full_s = situation.model.step_seconds(0, n, signals.context_tokens) + max(0.0, prefill_s)
        return "TpotPredicted", (
            f"a step of {current.max_batched_tokens} tokens with {_sequences(n)} "
            f"is predicted to take {_ms(full_s)} > {_ms(goal_s)}"
        )
    if lowered and wanted.max_batched_tokens == current.max_batched_tokens:
        return "SustainableBatch", f"more sequences than a step of {_ms(goal_s)} can keep fed"
    return "TpotHeadroom", f"with {_sequences(n)} a step has room within {_ms(goal_s)}"


def _sequences(n: float) -> str:
    return "1 decoding sequence" if round(n) == 1 else f"{n:.0f} decoding sequences"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
