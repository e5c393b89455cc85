"""AIBrix's application-specific pod autoscaler (APA) on KV use, in its usual form.

Proportional like the HPA, with a tolerance of 10 % on either side, at most doubling and halving, and a pause of five
minutes between two falls. Knows KV use only: a queue of short requests hides from it. The surprising
idea: its tolerance is the whole of its stability, there is no window.

Source: vllm-project/aibrix, pkg/controller/podautoscaler/algorithm/apa.go and its scaling context's defaults.
"""

import math

from capstan_sim.policy import Observation, Setting, Target

_KV_TARGET = 0.5
_TOLERANCE = 0.1
_RATE = 2.0
_DOWN_COOLDOWN_S = 300.0


class AibrixApa:
    """KV use against 0.5 k, every 10 s."""

    interval_s = 10.0

    def __init__(self, setting: Setting, knob: float) -> None:
        self._target = _KV_TARGET * knob
        self._kv_tokens = setting.model.kv_tokens
        self._max_replicas = setting.max_replicas
        self._lowered_at = 0.0

    def decide(self, seen: Observation) -> Target:
        """Replicas for the KV use of the ready ones."""
        current = seen.target
        ratio = seen.kv_tokens / (max(1, seen.ready) * self._kv_tokens) / self._target
        advice = current
        if ratio > 1 + _TOLERANCE:
            advice = min(math.ceil(current * ratio), math.ceil(_RATE * current))
        elif ratio < 1 - _TOLERANCE and seen.now - self._lowered_at >= _DOWN_COOLDOWN_S:
            advice = max(math.ceil(current * ratio), math.floor(current / _RATE))
        advice = max(1, min(advice, self._max_replicas))
        if advice < current:
            self._lowered_at = seen.now
        return Target(advice)
