"""NVIDIA Dynamo's planner for aggregated engines: a floor from forecast throughput, and single steps from estimates.

Every three minutes the floor is the forecast rate over the rate of one engine at its largest batch within the
objectives; every five seconds the count moves by one when all engines' estimated latencies miss, or when the survivors
of one less would stay within a share of the objectives. Frozen while pods start or drain. Knows means and points, no
variance. The surprising idea: going down is judged by laying the present load on N-1 engines, not by a threshold.

Source: ai-dynamo/dynamo, components/src/dynamo/planner/core: load_scaling.py, throughput_scaling.py, perf_model/agg.py.
Holt's linear method stands for its choice of predictors, with shares that no burst of one interval can run away with.
"""

import math
from dataclasses import dataclass

from capstan_sim.policies.capacity import Capacity
from capstan_sim.policy import Observation, ReplicaLoad, Setting, Target

_FORECAST_EVERY_S = 180.0
_DOWN_SENSITIVITY = 0.8


@dataclass(slots=True)
class Holt:
    """Double exponential smoothing (Holt, 1957): a level and a trend per interval."""

    level_share: float = 0.3
    trend_share: float = 0.1
    _level: float | None = None
    _trend: float = 0.0

    def forecast(self, value: float) -> float:
        """Learn the value of the interval that has ended; return that of the next one, never below 0."""
        if self._level is None:
            self._level = value
        else:
            level = self.level_share * value + (1 - self.level_share) * (self._level + self._trend)
            self._trend = self.trend_share * (level - self._level) + (1 - self.trend_share) * self._trend
            self._level = level
        return max(0.0, self._level + self._trend)


class DynamoPlanner:
    """Throughput floor with rate k, load steps with down sensitivity 0.8 k."""

    interval_s = 5.0

    def __init__(self, setting: Setting, knob: float) -> None:
        self._capacity = capacity = Capacity(setting)
        self._objective = setting.objective
        self._kv_tokens = setting.model.kv_tokens
        self._max_replicas = setting.max_replicas
        self._rate = capacity.request_rate(capacity.largest_batch()) * knob
        self._sensitivity = _DOWN_SENSITIVITY * knob
        self._holt = Holt()
        self._floor = setting.initial_replicas
        self._forecast_at = 0.0
        self._arrivals = 0

    def decide(self, seen: Observation) -> Target:
        """The floor, or one step above or below the ready engines."""
        if seen.now - self._forecast_at >= _FORECAST_EVERY_S:
            rate = (seen.arrivals - self._arrivals) / (seen.now - self._forecast_at)
            self._floor = math.ceil(self._holt.forecast(rate) / self._rate)
            self._forecast_at, self._arrivals = seen.now, seen.arrivals
        if seen.starting or seen.draining or not seen.replicas:
            return Target(seen.target)
        advice = max(seen.ready + self._load_step(seen), self._floor)
        return Target(max(1, min(advice, self._max_replicas)))

    def _load_step(self, seen: Observation) -> int:
        objective = self._objective
        # The planner averages the engines' step records; a steady batch says the same without their sampling.
        prefill_tokens = self._capacity.riding_prefill_tokens(seen.running / seen.ready)
        if all(self._ttft_s(replica) > objective.ttft_s for replica in seen.replicas):
            return 1
        if all(self._itl_s(replica.kv_tokens, prefill_tokens) > objective.tpot_s for replica in seen.replicas):
            return 1
        shrinks = seen.ready > 1 and all(self._survives(load, seen.ready, prefill_tokens) for load in seen.replicas)
        return -1 if shrinks else 0

    def _ttft_s(self, replica: ReplicaLoad, share: float = 1.0) -> float:
        """Estimated TTFT of a request that arrives now, with the present load times `share`."""
        batch = replica.kv_tokens / self._capacity.mean_context
        return self._capacity.ttft_s(replica.waiting_tokens * share, batch * share)

    def _itl_s(self, kv_tokens: float, prefill_tokens: float) -> float:
        """Estimated time per output token when one more mean request joins."""
        return self._capacity.step_s(prefill_tokens, kv_tokens / self._capacity.mean_context + 1)

    def _survives(self, replica: ReplicaLoad, ready: int, prefill_tokens: float) -> bool:
        share = ready / (ready - 1)
        objective = self._objective
        own_s = self._capacity.ttft_s(0, replica.kv_tokens * share / self._capacity.mean_context)
        queued_s = self._ttft_s(replica, share) - own_s
        kv_tokens = (replica.kv_tokens + replica.waiting_tokens) * share
        return (
            queued_s < (objective.ttft_s - own_s) * self._sensitivity
            and kv_tokens < self._kv_tokens
            and self._itl_s(kv_tokens, prefill_tokens) < objective.tpot_s * self._sensitivity
        )
