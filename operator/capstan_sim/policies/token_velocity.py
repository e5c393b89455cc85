"""TokenScale's token velocity: arriving tokens per second over the tokens per second that a replica gets through.

Prompt and output tokens are sized apart and added, because one replica does both here. Fluid: a mean rate over a mean
speed, with no term for variance. Knows the last ten seconds only.

Source: TokenScale (arXiv 2512.03416), aggregated form.
"""

import math
from collections import deque

from capstan_sim.policies.capacity import Capacity
from capstan_sim.policies.windows import DownWindow
from capstan_sim.policy import Observation, Setting, Target

_UTILISATION = 0.8
_DOWN_WINDOW_S = 60.0
_RATE_WINDOW_S = 10.0


class TokenVelocity:
    """(prompt tokens/s over V_P + arrivals/s × mean output over V_D) / 0.8 k, every 5 s."""

    interval_s = 5.0

    def __init__(self, setting: Setting, knob: float) -> None:
        capacity = Capacity(setting)
        self._prefill_velocity = capacity.prefill_velocity()
        self._decode_velocity = capacity.decode_velocity()
        self._mean_output = setting.mean_output
        self._utilisation = _UTILISATION * knob
        self._max_replicas = setting.max_replicas
        self._window = DownWindow(_DOWN_WINDOW_S, setting.initial_replicas)
        self._arrivals = deque([(0.0, 0)], maxlen=1 + round(_RATE_WINDOW_S / self.interval_s))

    def decide(self, seen: Observation) -> Target:
        """Replicas for the token rates."""
        prefill_load = seen.prompt_token_rate_10s / self._prefill_velocity
        decode_load = self._arrival_rate(seen) * self._mean_output / self._decode_velocity
        advice = math.ceil((prefill_load + decode_load) / self._utilisation)
        return Target(max(1, min(self._window.settle(seen.now, advice, seen.target), self._max_replicas)))

    def _arrival_rate(self, seen: Observation) -> float:
        self._arrivals.append((seen.now, seen.arrivals))
        since, before = self._arrivals[0]
        return (seen.arrivals - before) / (seen.now - since)
