"""llm-d's workload-variant autoscaler by occupancy: saturation in percentages (v1) and in tokens (v2).

Both read KV use and queue of each replica at the tick and know nothing of objectives or arrivals. The surprising idea
of v2: the capacity that counts is what a replica holds when its steps are full, not the size of its cache. It learns
that from whatever a replica with a queue holds: a burst, which queues long before it fills the cache, teaches it a
small one, and it overshoots.

Source: llm-d/llm-d-workload-variant-autoscaler, internal/capacity/analyzer.go (v1) and
internal/engines/analyzers/saturation_v2/analyzer.go.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import mean, median

from capstan_sim.policies.windows import DownWindow
from capstan_sim.policy import Observation, ReplicaLoad, Setting, Target

_DOWN_WINDOW_S = 120.0
_KV_THRESHOLD = 0.8
_QUEUE_THRESHOLD = 5.0
_KV_SPARE = 0.1
_QUEUE_SPARE = 3.0
_SCALE_UP_UTILISATION = 0.85
_SCALE_DOWN_UTILISATION = 0.70
_REMEMBERED = 10
"""Saturated replicas, of whose tokens the mean is taken."""


class LlmdSaturation:
    """v1: one more when the unsaturated have little spare, one less when N-1 would keep enough. Every 30 s."""

    interval_s = 30.0

    def __init__(self, setting: Setting, knob: float) -> None:
        self._kv_threshold = _KV_THRESHOLD * knob * setting.model.kv_tokens
        self._kv_spare = _KV_SPARE * setting.model.kv_tokens
        self._queue_threshold = _QUEUE_THRESHOLD * knob
        self._queue_spare = _QUEUE_SPARE * knob
        self._max_replicas = setting.max_replicas
        self._window = DownWindow(_DOWN_WINDOW_S, setting.initial_replicas)

    def decide(self, seen: Observation) -> Target:
        """One up, one down or none; none while pods start."""
        advice = seen.target + (0 if seen.starting else self._step(seen.replicas))
        return Target(max(1, min(self._window.settle(seen.now, advice, seen.target), self._max_replicas)))

    def _step(self, replicas: Sequence[ReplicaLoad]) -> int:
        if not replicas:
            return 0
        unsaturated = [
            load for load in replicas if load.kv_tokens < self._kv_threshold and load.waiting < self._queue_threshold
        ]
        if not self._has_spare(unsaturated, over=len(unsaturated)):
            return 1
        return -1 if self._has_spare(unsaturated, over=len(unsaturated) - 1) else 0

    def _has_spare(self, loads: Sequence[ReplicaLoad], over: int) -> bool:
        """Whether `over` replicas that share these loads evenly keep both spare margins; none of them never does."""
        if not over:
            return False
        spare_kv = self._kv_threshold - sum(load.kv_tokens for load in loads) / over
        spare_queue = self._queue_threshold - sum(load.waiting for load in loads) / over
        return spare_kv >= self._kv_spare and spare_queue >= self._queue_spare


class WvaTokens:
    """v2: tokens held and queued against capacity, up beyond 85 %, down below 70 %. Every 30 s."""

    interval_s = 30.0

    def __init__(self, setting: Setting, knob: float) -> None:
        prompt, output = setting.mean_prompt, setting.mean_output
        steady = min(setting.limits.max_batched_tokens * output / (prompt + output), setting.limits.max_sequences)
        self._derived_capacity = steady * (prompt + output / 2)
        self._kv_capacity = _KV_THRESHOLD * setting.model.kv_tokens
        self._mean_prompt, self._mean_output = prompt, output
        self._knob = knob
        self._max_replicas = setting.max_replicas
        self._window = DownWindow(_DOWN_WINDOW_S, setting.initial_replicas)
        self._observed: deque[int] = deque(maxlen=_REMEMBERED)

    def decide(self, seen: Observation) -> Target:
        """Replicas for the tokens; what starts counts on the way up, and nothing falls while it does."""
        if not seen.replicas:
            return Target(seen.target)
        capacity = self._knob * median(self._capacity(load) for load in seen.replicas)
        demand = seen.kv_tokens + self._mean_prompt * sum(load.waiting for load in seen.replicas)
        demand += (self._mean_prompt + self._mean_output) * seen.gateway_queue
        advice = max(seen.target, math.ceil(demand / _SCALE_UP_UTILISATION / capacity))
        if advice == seen.target and not seen.starting:
            advice = min(advice, math.ceil(demand / _SCALE_DOWN_UTILISATION / capacity))
        return Target(max(1, min(self._window.settle(seen.now, advice, seen.target), self._max_replicas)))

    def _capacity(self, load: ReplicaLoad) -> float:
        """Tokens that a replica can hold: what it holds while it is saturated, or what others held, or the derived."""
        if load.waiting >= _QUEUE_THRESHOLD and load.kv_tokens:
            self._observed.append(load.kv_tokens)
            return min(self._kv_capacity, load.kv_tokens)
        return min(self._kv_capacity, mean(self._observed) if self._observed else self._derived_capacity)
