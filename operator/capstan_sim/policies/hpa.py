"""Kubernetes' HorizontalPodAutoscaler: on the queue, on concurrency, and fed by KEDA with the share of an objective.

Proportional: N' = ceil(N m / m*). Knows nothing of cold starts beyond counting a starting pod as idle, and nothing of
objectives unless its metric does. The surprising idea of the original: a pod that is not ready counts as idle, so that
a fleet that waits for its pods does not order them twice.

Source: kubernetes/kubernetes, pkg/controller/podautoscaler (replica_calculator.go, horizontal.go); KEDA documentation,
"Scaling deployments".
"""

import math

from capstan_sim.policies.capacity import Capacity
from capstan_sim.policies.tail import p95
from capstan_sim.policies.windows import DownWindow
from capstan_sim.policy import Observation, Setting, Target

_TOLERANCE = 0.1
_WINDOW_S = 300.0
_KV_TARGET = 0.8
_SLO_TARGET = 0.8
_CONCURRENCY_TARGET = 0.7
_QUEUE_TARGET = 5.0


def advice(ratio: float, num_pods: int, current: int) -> int:
    """Replicas when `num_pods` carry `ratio` times their target each; `current` within the tolerance of 10 %."""
    return current if abs(ratio - 1) <= _TOLERANCE else math.ceil(ratio * num_pods)


class _Hpa:
    """The behaviour that all three share: default rate limits and the scale-down window."""

    def __init__(self, setting: Setting, interval_s: float) -> None:
        self.interval_s = interval_s
        self._max_replicas = setting.max_replicas
        self._window = DownWindow(_WINDOW_S, setting.initial_replicas)

    def _per_pod(self, seen: Observation, pods_worth: float) -> Target:
        """Target for a load worth so many pods; those that start count as idle."""
        num_pods = seen.ready + seen.starting
        if not num_pods:
            return Target(seen.target)
        return self._behave(seen, advice(pods_worth / num_pods, num_pods, seen.target))

    def _behave(self, seen: Observation, wanted: int) -> Target:
        settled = self._window.settle(seen.now, wanted, seen.target)
        # 100 % or 4 pods per 15 s, whichever is more; no tick is shorter than that.
        highest = min(self._max_replicas, max(2 * seen.target, seen.target + 4))
        return Target(max(1, min(settled, highest)))


class HpaQueue(_Hpa):
    """Mean of waiting requests per pod against 5 k, every 15 s."""

    def __init__(self, setting: Setting, knob: float) -> None:
        super().__init__(setting, interval_s=15.0)
        self._target = _QUEUE_TARGET * knob

    def decide(self, seen: Observation) -> Target:
        """Replicas for the queue."""
        return self._per_pod(seen, seen.waiting / self._target)


class HpaConcurrency(_Hpa):
    """Mean of running and waiting requests per pod against 0.7 n* k, every 15 s."""

    def __init__(self, setting: Setting, knob: float) -> None:
        super().__init__(setting, interval_s=15.0)
        self._target = _CONCURRENCY_TARGET * Capacity(setting).largest_batch() * knob

    def decide(self, seen: Observation) -> Target:
        """Replicas for the concurrency."""
        return self._per_pod(seen, seen.concurrency / self._target)


class KedaSlo(_Hpa):
    """The worst of TTFT p95 and TPOT p95 as shares of their objectives and KV use as a share of 0.8, against 0.8 k.

    Every 30 s, over the samples of the last minute. Does not rise while pods start: their effect on a percentile is
    still to come.
    """

    def __init__(self, setting: Setting, knob: float) -> None:
        super().__init__(setting, interval_s=30.0)
        self._objective = setting.objective
        self._kv_tokens = setting.model.kv_tokens
        self._target = _SLO_TARGET * knob

    def decide(self, seen: Observation) -> Target:
        """Replicas for the worst ratio."""
        shares = [
            p95(seen.ttft_s) / self._objective.ttft_s,
            p95(seen.tpot_s) / self._objective.tpot_s,
            seen.kv_tokens / (max(1, seen.ready) * self._kv_tokens) / _KV_TARGET,
        ]
        if not seen.replicas:
            return Target(seen.target)
        wanted = advice(max(shares) / self._target, seen.ready, seen.target)
        return self._behave(seen, min(wanted, seen.target) if seen.starting else wanted)
