"""Chiron: a fleet kept below a share of busy slots, and a running limit that climbs until TPOT suffers and then halves.

The only peer that moves limits and replicas both, though not together: each loop looks at its own signal. Knows no
arrivals and no forecast. The surprising idea: additive caution is missing, the halving is the only brake.

Source: Chiron, "Hierarchical Autoscaling for Large Language Model Serving" (arXiv 2501.08090).
"""

import math

from capstan_sim.policies.capacity import Capacity
from capstan_sim.policies.tail import p95
from capstan_sim.policies.windows import DownWindow
from capstan_sim.policy import Observation, Setting, Target

_BUSY_SHARE = 2 / 3
_WINDOW_S = 120.0
_GROWTH = 1.1
_SPARE_TPOT = 0.9
_FEWEST_SEQUENCES, _MOST_SEQUENCES = 8, 256


class Chiron:
    """Busy share of min(S, n*) against 2 k / 3, every 15 s; S moves with the p95 of TPOT."""

    interval_s = 15.0

    def __init__(self, setting: Setting, knob: float) -> None:
        self._busy_share = _BUSY_SHARE * knob
        self._tpot_s = setting.objective.tpot_s
        self._largest_batch = Capacity(setting).largest_batch()
        self._max_replicas = setting.max_replicas
        self._sequences = float(setting.limits.max_sequences)
        self._window = DownWindow(_WINDOW_S, setting.initial_replicas)

    def decide(self, seen: Observation) -> Target:
        """Replicas for the busy slots, and the next running limit."""
        sequences = self._next_limit(p95(seen.tpot_s))
        slots = min(sequences, self._largest_batch)
        advice = math.ceil((seen.running + seen.waiting) / (self._busy_share * slots))
        settled = self._window.settle(seen.now, advice, seen.target)
        limits = seen.limits.model_copy(update={"max_sequences": sequences})
        return Target(max(1, min(settled, self._max_replicas)), limits)

    def _next_limit(self, tpot_s: float) -> int:
        # A fraction is kept, so that a small limit can grow by a tenth at all.
        if tpot_s > self._tpot_s:
            self._sequences = max(self._sequences / 2, _FEWEST_SEQUENCES)
        elif 0 < tpot_s < _SPARE_TPOT * self._tpot_s:
            self._sequences = min(self._sequences * _GROWTH, _MOST_SEQUENCES)
        return int(self._sequences)
