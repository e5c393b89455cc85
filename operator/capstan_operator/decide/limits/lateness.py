"""What ended, counted for the fast loop: whether more answers are late than may be.

Moves no limit. The guard is the share of the length that the model allows to full steps: it falls while more answers
are late than the objective lets TPOT have, and returns when they are no more.

The surprising idea: late answers lower nothing while first tokens are late more often. Less budget would give to the
smaller evil what it takes from the larger one.
"""

from typing import Final

from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.limits.situation import TPOT_SHARE, Situation

# Never above what the model allows. While prompts queue all steps are full, and longer ones make every short answer
# late, for the sake of fewer first tokens than that: those that are late yield to the others.
_GUARD_BOUNDS: Final = (0.5, 1.0)
_GUARD_UP, _GUARD_DOWN = 1.05, 0.93
_LATE_HALF_LIFE_S: Final = 120.0
_ENOUGH_REQUESTS: Final = 8
# In mean answers: how long after a move of the limits those that end have mostly begun under others.
_STALE_ANSWERS, _LEAST_STALE_S = 2.0, 10.0


def watched(memory: LimitsMemory, situation: Situation, answer_s: float, now: float) -> LimitsMemory:
    """The memory after what ended was counted.

    Answers that began under other limits say nothing of these, nor does what comes while prompts queue: that no length
    of steps would have saved.
    """
    target, kept = situation.target, 0.5 ** (situation.seconds / _LATE_HALF_LIFE_S)
    since = max(memory.moved_at or 0.0, memory.queued_at or 0.0)
    counts = now - since >= max(_STALE_ANSWERS * answer_s, _LEAST_STALE_S)
    ended = late = begun = late_first = 0.0
    if target is not None and counts:
        ended, late, begun, late_first = target.ended, target.late, target.begun, target.late_first
    return memory.changed(
        ended=kept * memory.ended + ended,
        late=kept * memory.late + late,
        begun=kept * memory.begun + begun,
        late_first=kept * memory.late_first + late_first,
        late_now=memory.late_now or late > ended,
        steps=memory.steps.watched(situation, counts=counts),
    )


def is_late(memory: LimitsMemory) -> bool:
    """Whether more answers than may be are slower than their TPOT threshold, and first tokens are not late rather."""
    if memory.ended < _ENOUGH_REQUESTS or memory.late <= memory.ended:
        return False
    return TPOT_SHARE * memory.late / memory.ended >= memory.late_first / max(memory.begun, 1.0)


def guarded(memory: LimitsMemory) -> float:
    """The guard after one more adjustment."""
    low, high = _GUARD_BOUNDS
    if memory.ended < _ENOUGH_REQUESTS:
        return memory.guard
    if is_late(memory):
        return max(low, memory.guard * _GUARD_DOWN) if memory.late_now else memory.guard
    return min(high, memory.guard * _GUARD_UP)
