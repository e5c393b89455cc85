"""Whether full steps may take longer than the TPOT threshold: they may where answers average them out.

The TPOT of a request is a mean over its steps. Steps cut to the threshold T keep every answer within it, at the price
of prefill: only the share φ = 1 − base/full of a full step computes prompts, the rest is decoding. With long steps an
answer of O tokens is late only if more than O·(T − base) seconds of prefill come between them, however large the budget
is. With prompts of μ seconds, a load of ρ seconds of prefill per second, and y = O·(T − base)/μ for a mean answer:

    late TPOT, long    ρ · T/(T − base) · y/(1 + y)²                 one prompt that is too much for an answer
    late TTFT, either  (1 − b)·Ω / (1 − b·Ω), b = (ρ/φ)²             stays in an M/M/1 queue that those leave who are
                       Ω = exp(−(1 − b)·(τ − full/2)·φ/μ)            late, the shorter of two

for a TTFT of τ and exponential lengths. In simulation the two tell chat on a large model (long steps cost nothing) from
long prompts with short answers by orders of magnitude. What they tell wrongly is mended by what was measured: first
tokens under short steps, answers under long ones, for each length has a vice that the other one would mend.

The surprising idea: there is nothing between. Steps a little longer than T lose the TPOT of as many answers as steps
without any bound, and give less to the TTFT.
"""

import math
from typing import Final, NamedTuple

from capstan_operator.decide.limits.situation import TPOT_SHARE, Situation
from capstan_operator.decide.values import Value

_LOAD_HALF_LIFE_S: Final = 60.0
# Of what is seen under the length in force, and of what was seen under the other: at first the shortest answers end,
# and a verdict on them must not stand when nobody can appeal against it.
_EVIDENCE_HALF_LIFE_S, _OLD_HALF_LIFE_S = 600.0, 120.0
# A prediction counts as much as so many requests.
_PRIOR_REQUESTS: Final = 100.0
# Those of one turn count as no more than these: they shared their steps, and are rather one observation than many.
_MOST_IN_A_TURN: Final = 20.0
# By which the other length must be better: in units of what may miss, and of what this one misses.
_LEAST_GAIN, _GAIN_SHARE = 0.1, 0.25


class Evidence(Value):
    """Requests under steps of one length, and how many had its vice, in units of what may be missed."""

    requests: float = 0
    missed: float = 0

    def learn(self, requests: float, missed: float, seconds: float, *, in_force: bool) -> "Evidence":
        kept = 0.5 ** (seconds / (_EVIDENCE_HALF_LIFE_S if in_force else _OLD_HALF_LIFE_S))
        weight = _MOST_IN_A_TURN / max(requests, _MOST_IN_A_TURN)
        return Evidence.made(
            requests=kept * self.requests + weight * requests, missed=kept * self.missed + weight * missed
        )

    def beside(self, predicted: float) -> float:
        """Misses per request in those units, with a prediction to begin with."""
        return (self.missed + _PRIOR_REQUESTS * predicted) / (self.requests + _PRIOR_REQUESTS)


class LongSteps(Value):
    """Which length is in force, and what is known of both."""

    are_long: bool = False
    load: float | None = None
    """Seconds of prefill per second and replica, of the last minutes."""
    late_first: Evidence = Evidence()
    """First tokens under short steps."""
    late: Evidence = Evidence()
    """Answers under long ones."""

    def watched(self, situation: Situation, *, counts: bool) -> "LongSteps":
        """The memory after one more turn; what ended in it says something of the length in force if `counts`."""
        target, load, seconds = situation.target, self.load, situation.seconds
        share = 1 - 0.5 ** (seconds / _LOAD_HALF_LIFE_S)
        load = situation.prefill_load if load is None else load + share * (situation.prefill_load - load)
        begun = late_first = ended = late = 0.0
        if target is not None and counts and self.are_long:
            ended, late = target.ended, TPOT_SHARE * target.late
        elif target is not None and counts:
            begun, late_first = target.begun, target.late_first
        return self.changed(
            load=load,
            late_first=self.late_first.learn(begun, late_first, seconds, in_force=not self.are_long),
            late=self.late.learn(ended, late, seconds, in_force=self.are_long),
        )

    def chosen(self, situation: Situation, goal_s: float, longest_s: float) -> "LongSteps":
        """The memory with the better length of full steps: within `goal_s`, or `longest_s`."""
        if situation.target is None or self.load is None:
            return self
        if not self.are_long and self.load >= 1 - situation.base_s / goal_s:
            # Who is saturated needs replicas; until they are there, the answers under way are protected.
            return self
        expected = _Expected.of(situation, self.load, goal_s, longest_s)
        short = self.late_first.beside(expected.late_first_short)
        long = expected.late_first_long + self.late.beside(expected.late_long)
        mine, other = (long, short) if self.are_long else (short, long)
        if other + _LEAST_GAIN >= (1 - _GAIN_SHARE) * mine:
            return self
        return self.changed(are_long=not self.are_long)


def late_tpot(load: float, prompt_s: float, base_s: float, threshold_s: float, output: float) -> float:
    """Share of answers of `output` tokens that prompts of `prompt_s` between their tokens make late, steps being long.

    `load` is seconds of prefill per second, `base_s` a step without any.
    """
    room_s = threshold_s - base_s
    if room_s <= 0:
        return 1.0
    prompts = output * room_s / max(prompt_s, 1e-9)
    return min(1.0, load * threshold_s / room_s * prompts / (1 + prompts) ** 2)


def late_ttft(load: float, prompt_s: float, base_s: float, full_s: float, ttft_s: float, num_ready: int) -> float:
    """Share of first tokens that are late when full steps take `full_s`."""
    for_prompts = 1 - base_s / full_s
    if load >= for_prompts:
        return 1.0
    busy = (load / for_prompts) ** min(2, num_ready)
    longer = math.exp(-(1 - busy) * max(0.0, ttft_s - full_s / 2) * for_prompts / max(prompt_s, 1e-9))
    # Those that are late already do not hold up the others.
    return (1 - busy) * longer / (1 - busy * longer)


class _Expected(NamedTuple):
    """Predicted misses per request, in units of what may be missed."""

    late_first_short: float
    late_first_long: float
    late_long: float

    @classmethod
    def of(cls, situation: Situation, load: float, goal_s: float, longest_s: float) -> "_Expected":
        target, ttft_s, base_s = situation.target, situation.ttft_s, situation.base_s
        assert target is not None, "without a TPOT threshold steps may be as long as they like"
        prompt_s = situation.token_s * max(situation.long_prompt, situation.lengths.computed_prompt) / 2
        late = late_tpot(load, prompt_s, base_s, target.threshold_s, situation.lengths.output)
        first = [
            0.0 if ttft_s is None else late_ttft(load, prompt_s, base_s, full_s, ttft_s, max(1, situation.num_ready))
            for full_s in (goal_s, longest_s)
        ]
        return cls(*(share / target.allowed for share in (*first, late if longest_s > goal_s else 0.0)))
