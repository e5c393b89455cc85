"""The batch limits decided last, for all replicas and for the one that tries others, and the feedback they rest on.

Moves nothing: `batch_limits` does. The surprising idea: a raised budget is no change of the limits. It stands beside
them while prompts queue, and whoever is told of limits is told of those that return.
"""

from typing import Final

from capstan_api.limits import BatchLimits, Envelope
from capstan_operator.decide.limits.canary import CanaryMemory
from capstan_operator.decide.limits.long_steps import LongSteps
from capstan_operator.decide.values import Value

_BURST: Final = 4


class LimitsMemory(Value):
    """The limits decided last, and the feedback that they rest on."""

    limits: BatchLimits | None = None
    adjusted_at: float | None = None
    changed_at: float | None = None
    """Those of any replica."""
    moved_at: float | None = None
    """Those of all."""
    guard: float = 1.0
    ended: float = 0
    late: float = 0
    begun: float = 0
    late_first: float = 0
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

    steps: LongSteps = LongSteps()
    canary: CanaryMemory = CanaryMemory()
    borne: BatchLimits | None = None
    """Limits that harmed nobody: the way there needs no trial any more."""

    def has_borne(self, limits: BatchLimits) -> bool:
        """Whether these lie between those of all and what was borne."""
        if self.limits is None or self.borne is None:
            return False
        return _between(self.limits.max_sequences, limits.max_sequences, self.borne.max_sequences) and _between(
            self.limits.max_batched_tokens, limits.max_batched_tokens, self.borne.max_batched_tokens
        )

    def of(self, replica: str, envelope: Envelope) -> BatchLimits | None:
        """Those in force on a replica; None before the first turn."""
        trial = self.canary.trial
        if trial is None or trial.replica != replica:
            return self.burst or self.limits
        return burst(trial.limits, envelope) if self.burst else trial.limits

    def allows(self, replica: str, limits: BatchLimits, envelope: Envelope) -> bool:
        """Whether an engine with these limits does as it was told; bursts come and go faster than it is looked at."""
        if self.limits is None:
            return False
        trial = self.canary.trial
        on_trial = trial is not None and trial.replica == replica
        decided = envelope.clamp(trial.limits if trial is not None and on_trial else self.limits)
        burst = burst_budget(decided.max_batched_tokens, envelope)
        return limits.max_sequences == decided.max_sequences and (
            decided.max_batched_tokens <= limits.max_batched_tokens <= burst
        )


class Change(Value):
    """A change of limits as people are told of it: one word, one sentence, before and after."""

    reason: str
    message: str
    old: BatchLimits
    new: BatchLimits


def _between(one: int, value: int, other: int) -> bool:
    return min(one, other) <= value <= max(one, other)


def burst_budget(budget: float, envelope: Envelope) -> int:
    """Token budget while prompts queue, from the one while none does."""
    return round(min(_BURST * budget, envelope.max_batched_tokens))


def burst(limits: BatchLimits, envelope: Envelope) -> BatchLimits:
    """The same limits with that token budget."""
    return limits.model_copy(update={"max_batched_tokens": burst_budget(limits.max_batched_tokens, envelope)})
