"""Knative's pod autoscaler: concurrency over a stable minute, and a panic window of six seconds above it.

Knows a hand-set target concurrency per replica and nothing of objectives or cold starts: it was made for pods that are
ready in seconds. The surprising idea: in panic the target never falls, whatever both windows say, until a whole stable
window has passed below the threshold.

Source: knative/serving, pkg/autoscaler/scaling/autoscaler.go, and its configuration's defaults.
"""

import math

from capstan_sim.policies.capacity import Capacity
from capstan_sim.policy import Observation, Setting, Target

_TARGET_SHARE = 0.7
_STABLE_WINDOW_S = 60.0
_PANIC_THRESHOLD = 2.0
_MAX_UP_RATE = 1000.0
_MAX_DOWN_RATE = 2.0


class Kpa:
    """Target concurrency 0.7 n* k per replica, every 2 s."""

    interval_s = 2.0

    def __init__(self, setting: Setting, knob: float) -> None:
        self._concurrency = _TARGET_SHARE * Capacity(setting).largest_batch() * knob
        self._max_replicas = setting.max_replicas
        # A restarted autoscaler holds the fleet that it finds by starting in panic at that size.
        self._panic_since: float | None = 0.0 if setting.initial_replicas > 1 else None
        self._panic_replicas = setting.initial_replicas

    def decide(self, seen: Observation) -> Target:
        """Replicas by the stable window, or the highest seen in panic."""
        ready = max(1, seen.ready)
        stable = self._within_rates(seen.concurrency_60s, ready)
        panic = self._within_rates(seen.concurrency_6s, ready)
        if math.ceil(seen.concurrency_6s / self._concurrency) / ready >= _PANIC_THRESHOLD:
            if self._panic_since is None:
                self._panic_replicas = 0
            self._panic_since = seen.now
        elif self._panic_since is not None and self._panic_since + _STABLE_WINDOW_S < seen.now:
            self._panic_since = None
        if self._panic_since is not None:
            self._panic_replicas = max(self._panic_replicas, stable, panic)
            stable = self._panic_replicas
        return Target(max(1, min(stable, self._max_replicas)))

    def _within_rates(self, concurrency: float, ready: int) -> int:
        wanted = math.ceil(concurrency / self._concurrency)
        return min(max(wanted, math.floor(ready / _MAX_DOWN_RATE)), math.ceil(_MAX_UP_RATE * ready))
