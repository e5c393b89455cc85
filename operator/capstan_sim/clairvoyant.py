"""The cheapest fleet found for somebody who knows the whole workload: feasible, so above the optimum.

It has to attain the share like any policy, and launches pods a cold start ahead. First the limits and the number of
replicas by square-root staffing (Halfin and Whitt 1981) on the true demand, and the best constant fleet; then, from one
replica more than that, replicas are left out wherever that is cheap, over ever smaller blocks of time. The surprising
idea: what a replica is worth is a local question. Without it only requests around its block are late, so a block is
priced by simulating its surroundings; the whole workload is simulated only to confirm what was chosen.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from capstan_api.limits import BatchLimits
from capstan_sim.bounds import TICK_S, Bound, Schedule, Trial, request_work_s, static_oracle
from capstan_sim.errors import SimulationError
from capstan_sim.measure import attained
from capstan_sim.policy import Setting
from capstan_sim.simulation import TargetController, simulate

SMOOTHINGS_S = (60, 15)
LIMITS = tuple(
    BatchLimits(max_sequences=sequences, max_batched_tokens=tokens)
    for sequences, tokens in ((256, 1024), (256, 2048), (512, 1024), (256, 512))
)
_HIGHEST_SAFETY = 4.0
_SAFETY_HALVINGS = 5
_WARM_UP_S = 45
"""Simulated before a block so that its queues are about what they are in the whole workload."""
_SETTLING_S = 30
"""Simulated after the last moment at which a block's replica is missing."""
_LARGEST_BLOCKS = 8
_SMALLEST_BLOCK_S = 40
_MOST_REFUSED = 4
"""Blocks that seemed cheap and were not, before smaller ones are tried."""


def clairvoyant(
    trial: Trial, limits: Sequence[BatchLimits] = LIMITS, *, progress: Callable[[str], None] = lambda line: None
) -> Bound | None:
    """The cheapest schedule found that attains the share; None when not even the start of the search does."""
    staffed: Bound | None = None
    for limit in limits:
        staffed = _staffed(trial, SMOOTHINGS_S[0], limit, staffed)
    if staffed is None:
        return None
    best = staffed
    for smooth_s in SMOOTHINGS_S[1:]:
        best = _staffed(trial, smooth_s, best.limits, best) or best
    affordable = math.ceil(best.summary.gpu_hours / _gpu_hours_of_one(trial)) - 1
    best = static_oracle(trial, best.limits, min(affordable, trial.setting.max_replicas)) or best
    progress(f"{best.origin}: {best.summary.gpu_hours:.2f} GPU-hours after {trial.num_simulations} simulations")
    return _Paring(trial, best).pared(progress)


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
    ahead_s = math.ceil(setting.cold_start_s) + TICK_S
    return Schedule([int(needs[now : now + ahead_s].max()) for now in range(0, len(needs), TICK_S)])


def _gpu_hours_of_one(trial: Trial) -> float:
    return float(trial.workload.arrival[-1]) * trial.setting.model.num_gpus / 3600


def _staffed(trial: Trial, smooth_s: int, limits: BatchLimits, best: Bound | None) -> Bound | None:
    """With the smallest safety that attains the share, if that is cheaper than `best`; else `best`."""
    true_demand = demand(trial, smooth_s)

    def tried(safety: float) -> Bound | None:
        schedule = staffing(true_demand, safety, trial.setting)
        planned = sum(schedule.targets) / len(schedule.targets) * _gpu_hours_of_one(trial)
        if best is not None and planned >= best.summary.gpu_hours:
            return best
        return trial.bound(schedule, limits, f"beta {safety:.2f} on demand over {smooth_s} s")

    low, high = 0.0, _HIGHEST_SAFETY
    best = best or tried(high)
    if best is None:
        return None
    for _ in range(_SAFETY_HALVINGS):
        middle = (low + high) / 2
        found = tried(middle)
        if found is None:
            low = middle
        else:
            high, best = middle, min(best, found, key=lambda bound: bound.summary.gpu_hours)
    return best


@dataclass(frozen=True, slots=True)
class Block:
    """One replica less in the ticks [start, stop)."""

    start: int
    stop: int

    def left_out(self, targets: Sequence[int]) -> tuple[int, ...]:
        """The targets with one less in the block, but never none."""
        block = (max(1, target - 1) for target in targets[self.start : self.stop])
        return (*targets[: self.start], *block, *targets[self.stop :])

    def num_saved(self, targets: Sequence[int]) -> int:
        """Ticks of a replica."""
        return sum(target > 1 for target in targets[self.start : self.stop])


class _Paring:
    """The search for what can be left out."""

    def __init__(self, trial: Trial, start: Bound) -> None:
        self._trial = trial
        self._start = start
        self._num_ticks = max(1, math.ceil(trial.workload.arrival[-1] / TICK_S))
        self._priced: dict[tuple[Block, tuple[int, ...]], int] = {}
        """Late requests of the surroundings of a block without it, by their targets."""
        self._base = self._lifted(start)

    def pared(self, progress: Callable[[str], None]) -> Bound:
        """The cheapest that was found, the start if nothing is cheaper."""
        num_sizes = 1 + max(0, int(math.log2(self._num_ticks * TICK_S / _LARGEST_BLOCKS / _SMALLEST_BLOCK_S)))
        for number in range(num_sizes):
            num_blocks = _LARGEST_BLOCKS << number
            edges = np.linspace(0, self._num_ticks, num_blocks + 1).astype(int).tolist()
            blocks = [Block(first, last) for first, last in pairwise(edges) if first < last]
            # What larger blocks leave of the requests that may be late, smaller ones spend better.
            self._pare(blocks, self._num_left * (1 - 1 / (num_sizes - number)))
            hours = self._base.summary.gpu_hours
            progress(f"blocks 1/{num_blocks}: {hours:.2f} GPU-hours after {self._trial.num_simulations} simulations")
        return min(self._start, self._base, key=lambda bound: bound.summary.gpu_hours)

    def _lifted(self, start: Bound) -> Bound:
        """With one replica more at every tick: where that is worth its price it stays."""
        targets = start.schedule.targets
        targets = (*targets, *([targets[-1]] * (self._num_ticks - len(targets))))[: self._num_ticks]
        most = self._trial.setting.max_replicas
        lifted = Schedule([min(most, target + 1) for target in targets])
        found = self._trial.bound(lifted, start.limits, start.origin)
        return found or replace(start, schedule=Schedule(targets))

    def _pare(self, blocks: Sequence[Block], reserve: float) -> None:
        """Leave out blocks, cheapest first, until only `reserve` more requests may be late."""
        refused: set[Block] = set()
        while len(refused) <= _MOST_REFUSED and (chosen := self._cheapest(blocks, self._num_left - reserve, refused)):
            if not self._take(chosen):
                refused.add(chosen[0])

    @property
    def _num_left(self) -> int:
        """Requests that may still be late."""
        return self._trial.num_allowed - len(self._base.late_at)

    def _take(self, chosen: Sequence[Block]) -> bool:
        """Leave out as many of the first as the whole workload can do without; whether that is any."""
        while chosen:
            targets = self._base.schedule.targets
            for block in chosen:
                targets = block.left_out(targets)
            tried = self._trial.bound(Schedule(targets), self._base.limits, self._base.origin)
            if tried is not None and tried.summary.gpu_hours < self._base.summary.gpu_hours:
                self._base = tried
                return True
            chosen = chosen[: len(chosen) // 2]
        return False

    def _cheapest(self, blocks: Iterable[Block], budget: float, refused: set[Block]) -> list[Block]:
        """Those whose added misses together fit the budget, in order of misses per saved tick."""
        targets = self._base.schedule.targets
        offers = [
            (max(0, self._num_added(block)) / saved, block.start, block)
            for block in blocks
            if block not in refused and (saved := block.num_saved(targets))
        ]
        chosen, spent = [], 0.0
        for price, _, block in sorted(offers, key=lambda offer: offer[:2]):
            added = price * block.num_saved(targets)
            if spent + added <= budget:
                spent += added
                chosen.append(block)
        return chosen

    def _num_added(self, block: Block) -> int:
        """Requests that would be late beside those that are, by a simulation of the block's surroundings."""
        trial, targets = self._trial, block.left_out(self._base.schedule.targets)
        first = max(0, block.start - _WARM_UP_S // TICK_S)
        stop_s = block.stop * TICK_S + trial.setting.cold_start_s + _SETTLING_S
        around = targets[first : math.ceil(stop_s / TICK_S) + 1]
        key = block, around
        if key not in self._priced:
            self._priced[key] = self._num_late(around, first, block.start, stop_s)
        return self._priced[key] - self._base.num_late(block.start * TICK_S, stop_s)

    def _num_late(self, targets: Sequence[int], first: int, start: int, stop_s: float) -> int:
        """Of the requests from the tick `start` on, when the simulation begins at the tick `first`."""
        try:
            part = self._trial.workload.window(first * TICK_S, stop_s)
        except SimulationError:
            return 0
        setting = replace(self._trial.setting, initial_replicas=targets[0], limits=self._base.limits)
        record = simulate(part, setting, TargetController(Schedule(targets)), ttft_s=self._trial.ttft_s)
        counted = part.arrival >= (start - first) * TICK_S
        return int((counted & ~attained(record, [setting.objective])).sum())
