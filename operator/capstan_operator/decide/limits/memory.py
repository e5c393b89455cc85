"""The batch limits decided last, for all replicas and for the one that tries others, and the feedback they rest on.

Moves nothing: `batch_limits` does.
"""

import math

from capstan_api.limits import BatchLimits, Envelope
from capstan_operator.decide.limits.canary import CanaryMemory
from capstan_operator.decide.limits.capacity import HEADROOM
from capstan_operator.decide.limits.long_steps import LongSteps
from capstan_operator.decide.limits.situation import Situation
from capstan_operator.decide.values import Value


class LimitsMemory(Value):
    """The limits decided last, and the feedback that they rest on."""

    limits: BatchLimits | None = None
    adjusted_at: float | None = None
    changed_at: float | None = None
    """Those of any replica."""
    moved_at: float | None = None
    """Those of all."""
    guessed: bool = False
    """They were set before any request had ended, and have not been looked at since by what requests are like."""
    guard: float = 1.0
    ended: float = 0
    late: float = 0
    begun: float = 0
    late_first: float = 0
    """As in `Target`, of the last minutes."""
    queued_at: float | None = None
    """When prompts were last seen to queue."""
    late_now: bool = False
    """Since the last adjustment, more was late than may be."""
    reason: str = "EnvelopeTop"
    message: str = ""

    steps: LongSteps = LongSteps()
    canary: CanaryMemory = CanaryMemory()
    borne: BatchLimits | None = None
    """Limits that harmed nobody: the way there needs no trial any more."""

    def longest_s(self, situation: Situation) -> float:
        """What a full step may take; infinite where no TPOT bounds it."""
        target = situation.target
        return math.inf if target is None or self.steps.are_long else HEADROOM * self.guard * target.threshold_s

    def has_borne(self, limits: BatchLimits) -> bool:
        """Whether these lie between those of all and what was borne."""
        if self.limits is None or self.borne is None:
            return False
        return _between(self.limits.max_sequences, limits.max_sequences, self.borne.max_sequences) and _between(
            self.limits.max_batched_tokens, limits.max_batched_tokens, self.borne.max_batched_tokens
        )

    def of(self, replica: str) -> BatchLimits | None:
        """Those in force on a replica; None before the first turn."""
        trial = self.canary.trial
        return self.limits if trial is None or trial.replica != replica else trial.limits

    def allows(self, replica: str, limits: BatchLimits, envelope: Envelope) -> bool:
        """Whether an engine with these limits does as it was told."""
        decided = self.of(replica)
        return decided is not None and limits == envelope.clamp(decided)


class Change(Value):
    """A change of limits as people are told of it: one word, one sentence, before and after."""

    reason: str
    message: str
    old: BatchLimits
    new: BatchLimits


def _between(one: int, value: int, other: int) -> bool:
    return min(one, other) <= value <= max(one, other)
