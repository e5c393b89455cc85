"""What no causal policy can beat, and what a policy must beat: the bounds that stand beside every comparison.

    fluid          cheapest work of the requests that must be in time: below every feasible fleet
    static oracle  the smallest constant fleet that attains the share
    causal limit   the attainment when all allowed replicas are launched at the start: no law attains more

The fourth, the schedule of somebody who knows the whole workload, is in `clairvoyant`. Knows one objective for all
requests. The surprising idea: a fleet that is too small need not be watched to its end. As soon as more requests are
late than may be, its trial is over.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from capstan_api.limits import BatchLimits
from capstan_sim.fleet import Fleet
from capstan_sim.measure import Summary, attained, summary
from capstan_sim.policies.static import Static
from capstan_sim.policy import Objective, Observation, Policy, Setting, Target
from capstan_sim.simulation import Record, TargetController, simulate
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

SHARE = 0.99
"""Of all requests that must be in time."""
TICK_S = 5
_ROUNDING = 1e-9


def request_work_s(workload: Workload, model: StepModel, objective: Objective) -> NDArray[np.float64]:
    """[requests] Seconds of one replica that each needs when the base of a step is shared by the largest batch.

    bI + eI²/2 + (O - 1)(c + d(I + O/2) + a/n), n the largest batch within the TPOT objective and the KV cache.
    """
    prompt, output = workload.prompt.astype(float), workload.output.astype(float)
    context = prompt + output / 2
    per_sequence_s = model.sequence_s + model.context_token_s * context
    in_time = (objective.tpot_s - model.base_s) / per_sequence_s
    batch = np.maximum(1, np.floor(np.minimum(in_time, model.kv_tokens / context)))
    prefill_s = model.prefill_token_s * prompt + model.attention_pair_s * prompt**2 / 2
    work_s: NDArray[np.float64] = prefill_s + (output - 1) * (per_sequence_s + model.base_s / batch)
    return work_s


def fluid_gpu_hours(workload: Workload, model: StepModel, objective: Objective, share: float = SHARE) -> float:
    """GPU-hours of the cheapest `share` of the requests on one replica at least."""
    work_s = np.sort(request_work_s(workload, model, objective))[: int(share * len(workload))]
    return max(float(work_s.sum()), float(workload.arrival[-1])) * model.num_gpus / 3600


class Schedule:
    """Targets that were fixed beforehand, one per tick; the last one stays."""

    interval_s = float(TICK_S)

    def __init__(self, targets: Sequence[int]) -> None:
        self.targets = tuple(targets)
        """From 0 on: the first is there at the start."""

    def decide(self, seen: Observation) -> Target:
        """The target of this tick."""
        return Target(self.targets[min(round(seen.now / TICK_S), len(self.targets) - 1)])


@dataclass(frozen=True)
class Bound:
    """A fleet that attains the share, with what it is made of."""

    summary: Summary
    schedule: Schedule
    limits: BatchLimits
    origin: str
    """How the schedule was found, for people."""
    late_at: NDArray[np.float64] = field(compare=False)
    """Arrivals of the requests that were late, rising."""

    def num_late(self, start_s: float, stop_s: float) -> int:
        """Of those that arrived in [start, stop)."""
        first, last = np.searchsorted(self.late_at, (start_s, stop_s))
        return int(last - first)


class Trial:
    """One workload on one kind of replica: what fleets cost and attain there. Counts its simulations."""

    def __init__(self, workload: Workload, setting: Setting, share: float = SHARE) -> None:
        self.workload = workload
        self.setting = setting
        self.num_allowed = math.floor((1 - share) * len(workload) + _ROUNDING)
        """Requests that may be late."""
        self.num_simulations = 0
        self.ttft_s = setting.rule.told([setting.objective.ttft_s])
        """What engines know of it."""

    def run(self, policy: Policy, initial_replicas: int, prepare: Callable[[Fleet], None] | None = None) -> Summary:
        """The whole workload under `policy`; `prepare` is done to the fleet at the start."""
        self.num_simulations += 1
        setting = replace(self.setting, initial_replicas=initial_replicas)
        record = simulate(self.workload, setting, TargetController(policy), ttft_s=self.ttft_s, prepare=prepare)
        return summary(record, [setting.objective])

    def bound(self, schedule: Schedule, limits: BatchLimits, origin: str) -> Bound | None:
        """The schedule with what came of it; None as soon as more requests are late than may be."""
        self.num_simulations += 1
        setting = replace(self.setting, initial_replicas=schedule.targets[0], limits=limits)
        try:
            controller = _Impatient(schedule, setting.objective, self.num_allowed)
            record = simulate(self.workload, setting, controller, ttft_s=self.ttft_s)
        except _TooManyLate:
            return None
        late_at = self.workload.arrival[~attained(record, [setting.objective])]
        if len(late_at) > self.num_allowed:
            return None
        return Bound(summary(record, [setting.objective]), schedule, limits, origin, late_at)


class _TooManyLate(Exception):
    """Nothing that is still to come can mend it."""


class _Impatient(TargetController):
    """Gives up when more than `num_allowed` requests are late."""

    def __init__(self, policy: Policy, objective: Objective, num_allowed: int) -> None:
        super().__init__(policy)
        self._objective = objective
        self._num_left = num_allowed
        self._num_first = self._num_done = 0

    def turn(self, fleet: Fleet, record: Record, *, blind: bool) -> None:
        book, objective = fleet.book, self._objective
        for ttft_s in book.first_ttfts[self._num_first :]:
            self._num_left -= ttft_s > objective.ttft_s
        for request, tpot_s in zip(
            book.done_requests[self._num_done :], book.done_tpots[self._num_done :], strict=True
        ):
            # One whose first token was late has been counted already.
            in_time = book.first[request] - book.arrival[request] <= objective.ttft_s
            self._num_left -= tpot_s > objective.tpot_s and in_time
        self._num_first, self._num_done = len(book.first_ttfts), len(book.done_tpots)
        if self._num_left < 0:
            raise _TooManyLate
        super().turn(fleet, record, blind=blind)


def causal_limit(trial: Trial) -> Summary:
    """All replicas that are allowed, ordered at the start, before any policy is asked for the first time."""
    setting = trial.setting

    def order_all(fleet: Fleet) -> None:
        for _ in range(setting.max_replicas - setting.initial_replicas):
            fleet.launch()

    return trial.run(Static(setting.max_replicas), setting.initial_replicas, prepare=order_all)


def static_oracle(trial: Trial, limits: BatchLimits | None = None, most: int | None = None) -> Bound | None:
    """The smallest constant fleet of at most `most`, ready at the start, that attains the share; None when none does.

    Found by bisection, so it takes attainment to rise with the number of replicas.
    """
    limits = limits or trial.setting.limits
    low, high, best = 1, trial.setting.max_replicas if most is None else most, None
    while low <= high:
        middle = (low + high) // 2
        tried = trial.bound(Schedule([middle]), limits, f"static {middle}")
        if tried is not None:
            best, high = tried, middle - 1
        else:
            low = middle + 1
    return best
