"""What no causal policy can beat, and what a policy must beat: the bounds that stand beside every comparison.

    fluid          cheapest work of the requests that must be in time: below every feasible fleet
    clairvoyant    a schedule by somebody who knows the whole workload: feasible, so above the optimum
    static oracle  the smallest constant fleet that attains the share
    causal limit   the attainment when all allowed replicas are launched at the start: no law attains more

Knows one objective for all requests. The surprising idea: a clairvoyant has only two decisions, how many replicas a
moment deserves and which of those it can do without; the first is one number (the safety of square-root staffing,
Halfin and Whitt 1981), the second is found by leaving replicas out, block of time by block of time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from capstan_api.limits import BatchLimits
from capstan_sim.fleet import Fleet
from capstan_sim.measure import Summary, summary
from capstan_sim.policies.static import Static
from capstan_sim.policy import Objective, Observation, Policy, Setting, Target
from capstan_sim.simulation import TargetController, simulate
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

SHARE = 0.99
"""Of all requests that must be in time."""
SMOOTHINGS_S = (60, 15)
LIMITS = tuple(
    BatchLimits(max_sequences=sequences, max_batched_tokens=tokens)
    for sequences, tokens in ((256, 1024), (256, 2048), (512, 1024), (256, 512))
)
_TICK_S = 5
_HIGHEST_SAFETY = 4.0
_SAFETY_HALVINGS = 5
_LARGEST_BLOCKS = 8


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


@dataclass(frozen=True)
class Bound:
    """A fleet that was simulated, with what it is made of."""

    summary: Summary
    schedule: "Schedule"
    limits: BatchLimits
    origin: str
    """How the schedule was found, for people."""


class Schedule:
    """Targets that were fixed beforehand, one per tick; the last one stays."""

    interval_s = float(_TICK_S)

    def __init__(self, targets: Sequence[int]) -> None:
        self.targets = tuple(targets)
        """From 0 on: the first is there at the start."""

    def decide(self, seen: Observation) -> Target:
        """The target of this tick."""
        return Target(self.targets[min(round(seen.now / _TICK_S), len(self.targets) - 1)])

    def less_one(self, start: int, stop: int) -> "Schedule":
        """With one replica less in the ticks [start, stop), but never none."""
        block = [max(1, target - 1) for target in self.targets[start:stop]]
        return Schedule([*self.targets[:start], *block, *self.targets[stop:]])


class Trial:
    """One workload on one kind of replica: what fleets have cost and attained there. Counts its simulations."""

    def __init__(self, workload: Workload, setting: Setting, share: float = SHARE) -> None:
        self.workload = workload
        self.setting = setting
        self.share = share
        self.num_simulations = 0

    def run(
        self,
        policy: Policy,
        initial_replicas: int,
        limits: BatchLimits | None = None,
        prepare: Callable[[Fleet], None] | None = None,
    ) -> Summary:
        """The whole workload under `policy`; `prepare` is done to the fleet at the start."""
        self.num_simulations += 1
        setting = replace(self.setting, initial_replicas=initial_replicas, limits=limits or self.setting.limits)
        record = simulate(self.workload, setting, TargetController(policy), prepare=prepare)
        return summary(record, [setting.objective])

    def suffices(self, seen: Summary) -> bool:
        """Whether the share of requests in time is large enough."""
        return seen.attainment_percent >= 100 * self.share

    def bound(self, schedule: Schedule, limits: BatchLimits, origin: str) -> Bound:
        """The schedule with what came of it."""
        return Bound(self.run(schedule, schedule.targets[0], limits), schedule, limits, origin)


def causal_limit(trial: Trial) -> Summary:
    """All replicas that are allowed, ordered at the start, before any policy is asked for the first time."""
    setting = trial.setting

    def order_all(fleet: Fleet) -> None:
        for _ in range(setting.max_replicas - setting.initial_replicas):
            fleet.launch()

    return trial.run(Static(setting.max_replicas), setting.initial_replicas, prepare=order_all)


def static_oracle(trial: Trial, limits: BatchLimits | None = None) -> Bound | None:
    """The smallest constant fleet, ready at the start, that attains the share; None when none does.

    Found by bisection, so it takes attainment to rise with the number of replicas.
    """
    limits = limits or trial.setting.limits
    low, high, best = 1, trial.setting.max_replicas, None
    while low <= high:
        middle = (low + high) // 2
        tried = trial.bound(Schedule([middle]), limits, f"static {middle}")
        if trial.suffices(tried.summary):
            best, high = tried, middle - 1
        else:
            low = middle + 1
    return best


def clairvoyant(
    trial: Trial,
    num_removals: int = 150,
    limits: Sequence[BatchLimits] = LIMITS,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> Bound | None:
    """The cheapest schedule found that attains the share, by somebody who knows the workload; None when none does.

    First the limits and the number of replicas by square-root staffing on the true demand, smoothed, and the best
    constant fleet; then up to `num_removals` simulations in which one replica is left out of a block of time.
    """
    smooth = SMOOTHINGS_S[0]
    candidates = [found for limit in limits if (found := _staffed(trial, smooth, limit)) is not None]
    if not candidates:
        return None
    best_limits = min(candidates, key=_cost).limits
    others = [_staffed(trial, smooth, best_limits) for smooth in SMOOTHINGS_S[1:]]
    others.append(static_oracle(trial, best_limits))
    best = min([*candidates, *(found for found in others if found is not None)], key=_cost)
    progress(f"{best.origin}: {best.summary.gpu_hours:.2f} GPU-hours after {trial.num_simulations} simulations")
    return _leave_out(trial, best, num_removals, progress)


def _cost(bound: Bound) -> float:
    return bound.summary.gpu_hours


def demand(trial: Trial, smooth_s: int) -> NDArray[np.float64]:
    """[seconds] Replicas kept busy by what arrives, as a mean over the `smooth_s` seconds around each moment."""
    workload, setting = trial.workload, trial.setting
    num_s = math.floor(workload.arrival[-1]) + 1
    work_s = request_work_s(workload, setting.model, setting.objective)
    per_second = np.bincount(workload.arrival.astype(int), weights=work_s, minlength=num_s)
    window = np.ones(min(smooth_s, num_s), dtype=np.float64)
    smooth: NDArray[np.float64] = np.convolve(per_second, window, "same") / np.convolve(np.ones(num_s), window, "same")
    return smooth


def staffing(demand: NDArray[np.float64], safety: float, setting: Setting) -> Schedule:
    """Targets that have ceil(D + beta sqrt D) replicas ready at every moment, ordered a cold start ahead."""
    needs = np.clip(np.ceil(demand + safety * np.sqrt(demand)), 1, setting.max_replicas).astype(int)
    ahead_s = math.ceil(setting.cold_start_s) + _TICK_S
    return Schedule([int(needs[now : now + ahead_s].max()) for now in range(0, len(needs), _TICK_S)])


def _staffed(trial: Trial, smooth_s: int, limits: BatchLimits) -> Bound | None:
    """With the smallest safety that attains the share."""
    true_demand = demand(trial, smooth_s)

    def tried(safety: float) -> Bound:
        origin = f"beta {safety:.2f} on demand over {smooth_s} s"
        return trial.bound(staffing(true_demand, safety, trial.setting), limits, origin)

    low, high = 0.0, _HIGHEST_SAFETY
    best = tried(high)
    if not trial.suffices(best.summary):
        return None
    for _ in range(_SAFETY_HALVINGS):
        middle = tried((low + high) / 2)
        if trial.suffices(middle.summary):
            best, high = middle, (low + high) / 2
        else:
            low = (low + high) / 2
    return best


def _leave_out(trial: Trial, best: Bound, num_removals: int, progress: Callable[[str], None]) -> Bound:
    """Without a replica wherever the share is still attained: block by block, over ever smaller blocks."""
    num_blocks, left = _LARGEST_BLOCKS, num_removals
    num_ticks = math.ceil(trial.workload.arrival[-1] / _TICK_S)
    targets = best.schedule.targets
    # A constant fleet is one number; it needs a tick of its own wherever something may be left out.
    best = replace(best, schedule=Schedule([*targets, *([targets[-1]] * (num_ticks - len(targets)))]))
    while left > 0 and num_blocks <= num_ticks:
        edges = np.linspace(0, num_ticks, num_blocks + 1).astype(int)
        for start, stop in pairwise(edges.tolist()):
            while left > 0:
                left -= 1
                tried = trial.bound(best.schedule.less_one(start, stop), best.limits, best.origin)
                if not trial.suffices(tried.summary) or _cost(tried) >= _cost(best):
                    break
                best = tried
        progress(f"blocks 1/{num_blocks}: {best.summary.gpu_hours:.2f} GPU-hours, {left} simulations left")
        num_blocks *= 2
    return best
