"""llm-d's workload-variant autoscaler by queueing: the largest rate at which mean TTFT and ITL keep their objectives.

One replica is an M/M/1 queue whose service rate depends on how many requests share the engine. Knows means only, those
of the last minute: equal requests, Poisson arrivals, steady state; a tail is outside of it. The surprising idea: the
whole engine is one number per batch size, the rate mu(n) at which n requests leave.

Source: llm-inferno/queue-analysis, pkg/analyzer/queueanalyzer.go; the constants come from the true step model here and
from an extended Kalman filter in the field.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from capstan_sim.policies.windows import DownWindow
from capstan_sim.policy import Observation, Setting, Target

_DOWN_WINDOW_S = 120.0
_QUEUE_PER_SLOT = 10
_STABILITY = 1e-3
_HALVINGS = 40


class ReplicaQueue:
    """One replica as a state-dependent M/M/1/K queue of mean requests."""

    def __init__(self, setting: Setting) -> None:
        self._objective = setting.objective
        self._model = model = setting.model
        self._prompt, self._output = setting.mean_prompt, setting.mean_output
        self._context = setting.mean_prompt + setting.mean_output / 2
        self._num_slots = max(1, int(min(setting.limits.max_sequences, model.kv_tokens / self._context)))
        slots = np.arange(1, self._num_slots + 1, dtype=float)
        service_s = np.array([self._service_s(n) for n in slots])
        queue = np.full(_QUEUE_PER_SLOT * self._num_slots, self._num_slots / service_s[-1])
        self._departures: NDArray[np.float64] = np.concatenate([slots / service_s, queue])

    def _iteration_s(self, batch: float) -> float:
        # Prompt and output tokens cost the same to compute; each request's are spread over its O + 1 iterations.
        computed = (self._prompt + self._output) / (self._output + 1)
        per_request = self._model.prefill_token_s * computed + self._model.context_token_s * self._context
        return self._model.base_s + batch * per_request

    def _prefill_s(self, batch: float) -> float:
        own = (self._model.prefill_token_s + self._model.context_token_s) * self._prompt
        return self._iteration_s(batch) + own

    def _decode_s(self, batch: float) -> float:
        own = self._model.prefill_token_s + self._model.context_token_s * self._context
        return self._iteration_s(batch) + own

    def _service_s(self, batch: float) -> float:
        return self._prefill_s(batch) + self._output * self._decode_s(batch)

    def means(self, rate: float) -> tuple[float, float]:
        """Mean TTFT and mean time per output token, in seconds, at `rate` requests per second."""
        log_weights = np.concatenate([[0.0], np.cumsum(math.log(rate) - np.log(self._departures))])
        weights = np.exp(log_weights - log_weights.max())
        probabilities = weights / weights.sum()
        in_service = np.minimum(np.arange(len(probabilities)), self._num_slots)
        num_in_service = float(probabilities @ in_service)
        num_waiting = float(probabilities @ (np.arange(len(probabilities)) - in_service))
        throughput = rate * (1 - float(probabilities[-1]))
        prefill_s = self._prefill_s(num_in_service)
        tpot_s = (num_in_service / throughput - prefill_s) / self._output
        return num_waiting / throughput + prefill_s + tpot_s, tpot_s

    def largest_rate(self) -> float:
        """Requests per second of one replica with both means within their objectives.

        At least a thousandth of the rate of a lone request: an objective that nothing meets still needs an answer.
        """
        objective = self._objective
        low, high = float(self._departures[0]) * _STABILITY, float(self._departures[-1]) * (1 - _STABILITY)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            ttft_s, tpot_s = self.means(middle)
            low, high = (middle, high) if ttft_s <= objective.ttft_s and tpot_s <= objective.tpot_s else (low, middle)
        return low


class WvaQueueing:
    """Arrival rate over k times the largest rate of one replica, every 60 s."""

    interval_s = 60.0

    def __init__(self, setting: Setting, knob: float) -> None:
        self._setting = setting
        self._knob = knob
        self._max_replicas = setting.max_replicas
        self._window = DownWindow(_DOWN_WINDOW_S, setting.initial_replicas)

    def decide(self, seen: Observation) -> Target:
        """Replicas for the arrival rate of the last minute, at its mean lengths."""
        advice = math.ceil(seen.arrival_rate / (self._knob * self._queue(seen).largest_rate()))
        return Target(max(1, min(self._window.settle(seen.now, advice, seen.target), self._max_replicas)))

    def _queue(self, seen: Observation) -> ReplicaQueue:
        if not seen.mean_output:
            return ReplicaQueue(self._setting)
        return ReplicaQueue(replace(self._setting, mean_prompt=seen.mean_prompt, mean_output=seen.mean_output))
