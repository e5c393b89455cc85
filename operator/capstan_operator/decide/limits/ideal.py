"""The limits that thresholds and the KV cache allow, the rungs that lead there, and the words for them.

    budget     B = n + (T − a − c·n − d·ctx) / β         what is left beside n decoding sequences goes to prefill
    sequences  S = (T − a) / (c + d·ctx)                  the batch that takes this long to decode, as a safety cap:
                                                          anything from 0.8 of it will do

with T = 0.95 · threshold · guard; the budget has no bound but the envelope's where `long_steps` finds that answers
average long steps out. Remembers nothing and moves nothing; `batch_limits` does.
"""

from collections.abc import Iterator
from typing import Final

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.scaling import BatchLimitsPolicy
from capstan_operator.decide.limits.capacity import HEADROOM
from capstan_operator.decide.limits.ladder import LARGEST_MARGIN, ladder, move, towards
from capstan_operator.decide.limits.situation import Situation
from capstan_operator.decide.values import Value

_SEQUENCE_SLACK: Final = (0.8, 1.0)
_KV_SHARE: Final = 0.95


class Ideal(Value):
    """Token budget, and the sequences nearest to the current ones, that the thresholds and the KV cache allow."""

    tokens: float
    sequences: float

    def is_below(self, budget: float) -> bool:
        """Whether it asks for clearly fewer tokens."""
        return self.tokens < (1 - LARGEST_MARGIN) * budget

    def bears(self, tried: BatchLimits, instead_of: BatchLimits) -> bool:
        """Whether limits on trial would not be taken back as soon as everybody had them."""
        more_tokens = tried.max_batched_tokens > instead_of.max_batched_tokens
        more_sequences = tried.max_sequences > instead_of.max_sequences
        low = 1 - LARGEST_MARGIN
        return not (
            (more_tokens and self.tokens < tried.max_batched_tokens * low)
            or (more_sequences and self.sequences < tried.max_sequences * low)
        )


def ideal(situation: Situation, current: BatchLimits, envelope: Envelope, guard: float, *, are_long: bool) -> Ideal:
    """What this guard asks for; `are_long` lifts the bound that the TPOT sets to the length of a step."""
    model, target, kv_tokens = situation.model, situation.target, situation.kv_tokens
    tokens, sequences = float(envelope.max_batched_tokens), float(envelope.max_sequences)
    if target is not None:
        goal_s = HEADROOM * guard * target.threshold_s
        if not are_long:
            # A count that no engine may have asks for no budget beyond it.
            n = min(situation.signals.decode_sequences, envelope.max_sequences)
            base_s = model.step_seconds(0, n, situation.signals.context_tokens)
            tokens = n + max(0.0, goal_s - base_s) / situation.token_s
        # Not what prefill can keep filled: shorter answers than those so far would then wait for places.
        sequence_s = max(1e-9, model.sequence_seconds(situation.lengths.context))
        fewest, most = (slack * max(0.0, goal_s - model.coefficients[0]) / sequence_s for slack in _SEQUENCE_SLACK)
        sequences = min(max(float(current.max_sequences), fewest), most)
    if kv_tokens > 0:
        # A safety cap, by the mean request: engines admit no more than really fit.
        sequences = min(sequences, _KV_SHARE * kv_tokens / max(situation.lengths.context, 1))
    return Ideal.made(tokens=tokens, sequences=sequences)


def at_first(situation: Situation, envelope: Envelope, policy: BatchLimitsPolicy) -> BatchLimits:
    """Limits to begin with: the envelope's top, or what a model that was given allows before anything decodes."""
    top = envelope.top
    if not situation.model.is_usable:
        return top
    goal = ideal(situation, top, envelope, 1.0, are_long=False)
    return [top, *rungs(top, goal, envelope, policy)][-1]


def next_rung(current: BatchLimits, asked: Ideal, envelope: Envelope, policy: BatchLimitsPolicy) -> BatchLimits:
    """One rung towards the ideal; `current` where it is as good."""
    percent = policy.max_step_percent
    token_rungs, sequence_rungs = _ladders(envelope, policy)
    tokens = move(current.max_batched_tokens, asked.tokens, token_rungs, percent)
    sequences = move(current.max_sequences, asked.sequences, sequence_rungs, percent)
    if tokens < sequences:
        # Every running request needs a token a step.
        sequences = max(tokens, envelope.min_sequences)
        tokens = max(tokens, sequences)
    return BatchLimits(max_batched_tokens=tokens, max_sequences=sequences)


def one_rung(current: BatchLimits, goal: BatchLimits, envelope: Envelope, policy: BatchLimitsPolicy) -> BatchLimits:
    """One rung towards limits that are known to be good, and no farther than they are."""
    token_rungs, sequence_rungs = _ladders(envelope, policy)
    sequences = towards(current.max_sequences, goal.max_sequences, sequence_rungs)
    tokens = towards(current.max_batched_tokens, goal.max_batched_tokens, token_rungs)
    return BatchLimits(max_batched_tokens=max(tokens, sequences), max_sequences=sequences)


def rungs(current: BatchLimits, asked: Ideal, envelope: Envelope, policy: BatchLimitsPolicy) -> Iterator[BatchLimits]:
    """Rung by rung from the one after `current` to the ideal."""
    met = {current}
    while (current := next_rung(current, asked, envelope, policy)) not in met:
        met.add(current)
        yield current


def _ladders(envelope: Envelope, policy: BatchLimitsPolicy) -> tuple[tuple[int, ...], tuple[int, ...]]:
    percent = policy.max_step_percent
    return (
        ladder(envelope.max_batched_tokens, envelope.min_batched_tokens, percent),
        ladder(envelope.max_sequences, envelope.min_sequences, percent),
    )


def lower(a: BatchLimits, b: BatchLimits) -> BatchLimits:
    return BatchLimits(
        max_sequences=min(a.max_sequences, b.max_sequences),
        max_batched_tokens=min(a.max_batched_tokens, b.max_batched_tokens),
    )


def step(old: BatchLimits, new: BatchLimits) -> str:
    """What of the limits is different, for people."""
    parts = (
        ("token budget", old.max_batched_tokens, new.max_batched_tokens),
        ("sequences", old.max_sequences, new.max_sequences),
    )
    return ", ".join(f"{name} {before} → {after}" for name, before, after in parts if before != after)


def explained(
    current: BatchLimits, wanted: BatchLimits, situation: Situation, guard: float, *, is_late: bool, are_long: bool
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
        full_s = situation.base_s + max(0.0, prefill_s)
        return "TpotPredicted", (
            f"a step of {current.max_batched_tokens} tokens with {_sequences(n)} "
            f"is predicted to take {_ms(full_s)} > {_ms(goal_s)}"
        )
    if lowered and wanted.max_batched_tokens == current.max_batched_tokens:
        return "SustainableBatch", f"more sequences than a step of {_ms(goal_s)} decodes"
    if are_long and wanted.max_batched_tokens > current.max_batched_tokens:
        return (
            "LongStepsPay",
            f"answers average steps above {_ms(target.threshold_s)} out, and prompts need fewer of them",
        )
    return "TpotHeadroom", f"with {_sequences(n)} a step has room within {_ms(goal_s)}"


def _sequences(n: float) -> str:
    return "1 decoding sequence" if round(n) == 1 else f"{n:.0f} decoding sequences"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
