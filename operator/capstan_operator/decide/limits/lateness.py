"""What ended and what waits, counted for the fast loop: whether answers are late, and whether prompts are in a hurry.

Moves no limit. The guard is the factor by which full steps may miss the length that the model allows: it falls while
more answers are late than the objective lets TPOT have, and rises while prompts queue and hardly an answer is late.

The surprising idea: late answers lower nothing while first tokens are late more often. Less budget would give to the
smaller evil what it takes from the larger one.
"""

from typing import Final

from capstan_api.limits import Envelope
from capstan_operator.decide.fleets.bank import BURST_WAIT
from capstan_operator.decide.limits.memory import LimitsMemory, burst
from capstan_operator.decide.limits.situation import TPOT_SHARE, Situation

# Between the last turn that saw prompts queue and the end of the higher budget.
_BURST_HOLD_S: Final = 4.0
# Of the TTFT threshold: queueing prompts that take more are a reason to find out how long steps may be.
_PRESSING: Final = 0.15
_GUARD_BOUNDS: Final = (0.5, 3.0)
_GUARD_UP, _GUARD_DOWN = 1.05, 0.93
_LATE_HALF_LIFE_S: Final = 120.0
_ENOUGH_REQUESTS: Final = 8
# In mean answers: how long after a move of the limits those that end have mostly begun under others.
_STALE_ANSWERS, _LEAST_STALE_S = 2.0, 10.0


def watched(memory: LimitsMemory, situation: Situation, answer_s: float, now: float) -> LimitsMemory:
    """The memory after what ended, and what waits, was counted.

    Answers that began under other limits say nothing of these, nor do those that were slowed for the TTFT's sake.
    """
    target, kept = situation.target, 0.5 ** (situation.seconds / _LATE_HALF_LIFE_S)
    others = max(memory.moved_at or 0.0, memory.hurried_at or 0.0)
    counts = now - others >= max(_STALE_ANSWERS * answer_s, _LEAST_STALE_S)
    ended = late = begun = late_first = 0.0
    if target is not None and counts:
        ended, late, begun, late_first = target.ended, target.late, target.begun, target.late_first
    queue_s, ttft_s = situation.queue_s, situation.ttft_s
    threatened = ttft_s is not None and queue_s > BURST_WAIT * ttft_s
    return memory.changed(
        ended=kept * memory.ended + ended,
        late=kept * memory.late + late,
        begun=kept * memory.begun + begun,
        late_first=kept * memory.late_first + late_first,
        late_now=memory.late_now or late > ended,
        pressed=memory.pressed or (ttft_s is not None and queue_s > _PRESSING * ttft_s),
        hurried_at=now if threatened else memory.hurried_at,
        steps=memory.steps.watched(situation, counts=counts),
    )


def hurried(memory: LimitsMemory, situation: Situation, envelope: Envelope, now: float) -> LimitsMemory:
    """The memory with the limits for a queue that threatens the TTFT, while there is one."""
    limits = memory.limits
    is_over = memory.hurried_at is None or now - memory.hurried_at > _BURST_HOLD_S
    if limits is None or is_over or (situation.is_warming and situation.is_lost):
        return memory.changed(burst=None)
    raised = burst(limits, envelope)
    return memory.changed(burst=raised if raised != limits else None)


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
    if memory.pressed:
        return min(high, memory.guard * _GUARD_UP)
    # Without a queue there is nothing to be gained above the model's own value.
    return max(memory.guard, min(1.0, memory.guard * _GUARD_UP))
