"""The fast loop: which token budget and number of sequences engines work with from now on.

`ideal` says what the thresholds allow, `long_steps` whether the TPOT bounds the length of a step at all,
`lateness` what was measured; here one adjustment moves one rung of the ladder. What protects answers that are being
given is in force everywhere at once. Everything else is tried on one replica first, where there are several: as far as
the ideal, but no farther than four times the budget, and half as far where that was too much. What was borne
there is the way that all then go, rung by rung. While others warm up nothing is loosened, and a queue that has lost its
TTFT no longer lengthens steps: it would only take the TPOT of those who were admitted.

The surprising idea: what is not carried out is not learnt from. While a step waits for its trial the guard may fall and
not rise, or it would have run away by the time at which the trial ends.
"""

from collections.abc import Iterable
from itertools import takewhile
from typing import Final, NamedTuple

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.scaling import BatchLimitsPolicy
from capstan_operator.decide.limits.canary import CanaryMemory
from capstan_operator.decide.limits.capacity import HEADROOM
from capstan_operator.decide.limits.ideal import (
    Ideal,
    at_first,
    explained,
    ideal,
    lower,
    next_rung,
    one_rung,
    rungs,
    step,
)
from capstan_operator.decide.limits.lateness import guarded, is_late, watched
from capstan_operator.decide.limits.long_steps import LongSteps
from capstan_operator.decide.limits.memory import Change, LimitsMemory
from capstan_operator.decide.limits.situation import Situation
from capstan_operator.decide.limits.trials import Fleet, Outcome, Verdict
from capstan_operator.decide.values import Value

# Of the token budget, in one trial.
_FARTHEST: Final = 4


class Advice(Value):
    memory: LimitsMemory
    change: Change | None = None
    verdict: Verdict | None = None
    """Of a trial that has just ended."""


def adjust(
    memory: LimitsMemory,
    situation: Situation,
    fleet: Fleet,
    envelope: Envelope,
    policy: BatchLimitsPolicy,
    now: float,
) -> Advice:
    """One turn of the fast loop. Without anything to go by, or between two adjustments, the limits stay."""
    if situation.is_queueing:
        # Also before anything is known of requests: those that wait for the first replica will be late by its start.
        memory = memory.changed(queued_at=now)
    if memory.limits is None and not situation.lengths.is_known:
        return _begun(memory, situation, envelope, policy, now)
    canary, verdict = memory.canary.watched(fleet, now).followed(fleet, now)
    memory = memory.changed(limits=envelope.clamp(memory.limits or envelope.top), canary=canary)
    if situation.is_known:
        memory = watched(memory, situation, fleet.answer_s, now)
    if verdict is not None:
        return _concluded(memory, verdict, envelope, policy, now)
    return _adjusted(memory, situation, fleet, envelope, policy, now)


def _begun(
    memory: LimitsMemory, situation: Situation, envelope: Envelope, policy: BatchLimitsPolicy, now: float
) -> Advice:
    """The first limits of all, before any request has ended."""
    top, first = envelope.top, at_first(situation, envelope, policy)
    memory = memory.changed(limits=top)
    if first == top:
        return Advice.made(memory=memory)
    _, because = explained(top, first, situation, 1.0, is_late=False, are_long=False)
    begun = _changed(memory, first, "Calibrated", f"by what is known of steps so far, {because}", now)
    return begun.changed(memory=begun.memory.changed(guessed=True))


class _Aim(NamedTuple):
    """Where one adjustment leads: one rung from the `current` limits to those `wanted`, on the way to the `goal`."""

    situation: Situation
    current: BatchLimits
    goal: Ideal
    wanted: BatchLimits
    guard: float
    """What the goal was asked with."""
    is_late: bool
    are_long: bool

    def explained(self, limits: BatchLimits) -> tuple[str, str]:
        """Reason and clause for limits on that way."""
        return explained(self.current, limits, self.situation, self.guard, is_late=self.is_late, are_long=self.are_long)


def _adjusted(
    memory: LimitsMemory,
    situation: Situation,
    fleet: Fleet,
    envelope: Envelope,
    policy: BatchLimitsPolicy,
    now: float,
) -> Advice:
    too_early = memory.adjusted_at is not None and now - memory.adjusted_at < policy.adjustment_interval_seconds
    if too_early or not situation.is_known:
        return Advice.made(memory=memory)
    before, was_guessed = memory.guard, memory.guessed and memory.adjusted_at is not None
    memory, aim = _aimed(memory, situation, envelope, policy, now)
    current, wanted = aim.current, aim.wanted
    if was_guessed and aim.are_long and wanted.max_batched_tokens > current.max_batched_tokens:
        # Short steps were set for all by a guess at what requests are like, and are taken back for all.
        *_, longest = rungs(current, aim.goal, envelope, policy)
        memory = memory.changed(canary=memory.canary.without_trial())
        return _changed(memory, longest, *aim.explained(longest), now)
    tighter = lower(current, wanted)
    if tighter.max_batched_tokens < current.max_batched_tokens or (aim.is_late and tighter != current):
        # Those that are being answered cannot wait for a trial, and a trial of more is over.
        canary = memory.canary.reverted(current, tighter, now, was_measured=memory.guard < before)
        memory = memory.changed(canary=canary, borne=None if aim.is_late else memory.borne)
        return _changed(memory, tighter, *aim.explained(tighter), now)
    if wanted == current and memory.canary.trial is None:
        return Advice.made(memory=memory)
    return _loosened(memory, memory.changed(guard=min(before, memory.guard)), aim, fleet, envelope, policy, now)


def _aimed(
    memory: LimitsMemory, situation: Situation, envelope: Envelope, policy: BatchLimitsPolicy, now: float
) -> tuple[LimitsMemory, _Aim]:
    """What this adjustment is to lead to, and the memory with its guard."""
    current, is_first = memory.limits or envelope.top, memory.adjusted_at is None
    # Before anything was measured under limits of ours, answers are protected.
    steps = memory.steps if is_first else _chosen(memory.steps, situation, envelope)
    # What long steps make late is weighed by whoever chose them: fewer sequences would not make them shorter.
    late = not steps.are_long and is_late(memory)
    before, guard = memory.guard, memory.guard if steps.are_long else guarded(memory)
    if guard < before:
        predicted = ideal(situation, current, envelope, before, are_long=steps.are_long)
        if predicted.is_below(current.max_batched_tokens):
            # The model asks for less already: late answers are no news, and no fault of its.
            guard = before
    # A queue that has lost its TTFT fills every step: no shorter ones make up for those above the threshold.
    is_spared = situation.is_warming and situation.is_lost
    are_long, asked = steps.are_long and not is_spared, min(guard, 1.0) if is_spared else guard
    goal = ideal(situation, current, envelope, asked, are_long=are_long)
    memory = memory.changed(
        steps=steps, adjusted_at=now, guard=guard, late_now=False, guessed=memory.guessed and is_first
    )
    return memory, _Aim(
        situation=situation,
        current=current,
        goal=goal,
        wanted=next_rung(current, goal, envelope, policy),
        guard=asked,
        is_late=late,
        are_long=are_long,
    )


def _loosened(
    memory: LimitsMemory,
    kept: LimitsMemory,
    aim: _Aim,
    fleet: Fleet,
    envelope: Envelope,
    policy: BatchLimitsPolicy,
    now: float,
) -> Advice:
    """More, once it was borne; `kept` is the memory of what is not carried out."""
    trial, current, wanted = memory.canary.trial, aim.current, aim.wanted
    if trial is not None:
        if aim.goal.bears(trial.limits, trial.instead_of):
            return Advice.made(memory=kept)
        canary, verdict = memory.canary.ended("no more is asked for by now", now)
        return _concluded(kept.changed(canary=canary), verdict, envelope, policy, now)
    if aim.situation.is_warming or memory.canary.refuses(wanted, current, now):
        return Advice.made(memory=kept)
    if len(fleet.serving(now)) < 2 or memory.has_borne(wanted):
        return _changed(memory, wanted, *aim.explained(wanted), now)
    tried = farthest(memory.canary, current, rungs(current, aim.goal, envelope, policy), now)
    begun = memory.canary.begin(tried, current, fleet, now)
    if begun is None or begun.trial is None:
        return Advice.made(memory=kept)
    _, because = aim.explained(wanted)
    message = f"tried on {begun.trial.replica} first, {because}: {step(current, tried)}"
    change = Change(reason=Outcome.TRIED, message=message, old=current, new=tried)
    return Advice.made(memory=_told(kept.changed(canary=begun), change, now), change=change)


def _chosen(steps: LongSteps, situation: Situation, envelope: Envelope) -> LongSteps:
    """Whether full steps are to be long, now that it is looked at again."""
    target, signals = situation.target, situation.signals
    if target is None:
        return steps
    n = min(signals.decode_sequences, envelope.max_sequences)
    base_s = situation.model.step_seconds(0, n, signals.context_tokens)
    longest_s = base_s + situation.token_s * max(0.0, envelope.max_batched_tokens - n)
    return steps.chosen(situation, min(longest_s, HEADROOM * target.threshold_s), longest_s)


def farthest(canary: CanaryMemory, current: BatchLimits, way: Iterable[BatchLimits], now: float) -> BatchLimits:
    """The limits to try: as far on the way as a trial may go, and half as far as what is refused."""
    first, *further = way
    most = _FARTHEST * current.max_batched_tokens
    there = [first, *takewhile(lambda limits: limits.max_batched_tokens <= most, further)]
    while len(there) > 1 and canary.refuses(there[-1], current, now):
        there = there[: len(there) // 2]
    return there[-1]


def _concluded(
    memory: LimitsMemory, verdict: Verdict, envelope: Envelope, policy: BatchLimitsPolicy, now: float
) -> Advice:
    """The limits after a trial's verdict: all take the first rung of what was borne."""
    trial, current = verdict.trial, memory.limits or envelope.top
    memory = memory.changed(adjusted_at=now)
    if verdict.outcome is Outcome.KEPT:
        borne = envelope.clamp(trial.limits)
        first = one_rung(current, borne, envelope, policy)
        way = f"{step(current, first)} for all" + (f", {step(first, borne)} to follow" if first != borne else "")
        change = Change(reason=verdict.outcome, message=f"{verdict.because}: {way}", old=current, new=first)
        memory = memory.changed(limits=first, borne=borne, moved_at=now)
    else:
        taken_back = f"{verdict.because}: {step(trial.instead_of, trial.limits)} taken back"
        change = Change(reason=verdict.outcome, message=taken_back, old=trial.limits, new=current)
    return Advice.made(memory=_told(memory, change, now), change=change, verdict=verdict)


def _changed(memory: LimitsMemory, wanted: BatchLimits, reason: str, because: str, now: float) -> Advice:
    """Limits that all have from now on."""
    assert memory.limits is not None, "limits are set before they are changed"
    change = Change(reason=reason, message=f"{because}: {step(memory.limits, wanted)}", old=memory.limits, new=wanted)
    return Advice.made(
        memory=_told(memory.changed(limits=wanted, moved_at=now, guessed=False), change, now), change=change
    )


def _told(memory: LimitsMemory, change: Change, now: float) -> LimitsMemory:
    return memory.changed(changed_at=now, reason=change.reason, message=change.message)
