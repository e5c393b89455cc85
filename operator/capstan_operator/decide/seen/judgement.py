"""Which numbers may be believed: what is not finite, negative, absurd, too old or runs backwards is dropped and named.

A source is dropped as a whole, because half of one would look like a fall in load; it then counts as missing.
"""

from collections.abc import Mapping
from itertools import compress
from typing import Final

import numpy as np

from capstan_operator.decide.seen.counters import ClassCounters, believable
from capstan_operator.decide.seen.observation import EngineMetrics, GatewayMetrics, Observation, Phase
from capstan_operator.decide.seen.steps import are_believable, rows

# Of requests or tokens through one gateway: text for more would not fit any network.
_LARGEST_RATE: Final = 1e8
# Samples and counters of an engine are asked for at the same time, and it goes on meanwhile.
_STEPS_AHEAD: Final = 10_000
# Of a KV cache, with what rounding may add.
_FULL: Final = 1.001


class Judge:
    """Judges one observation at one moment, and keeps what it found wrong, one clause each."""

    def __init__(self, observation: Observation, now: float, max_age_s: float) -> None:
        self.faults: list[str] = []
        self._observation = observation
        self._oldest, self._newest = now - max_age_s, now + max_age_s
        self._too_old = f"metrics are not from the last {max_age_s:g} s"

    def gateways(self, classes: set[str]) -> dict[str, GatewayMetrics]:
        """Metrics of the gateways that are believed, by id, with exactly these classes and replicas that exist."""
        read = {gateway.id: gateway.metrics for gateway in self._observation.gateways}
        judged = {key: self._gateway(key, metrics, classes) for key, metrics in read.items() if metrics is not None}
        return {key: metrics for key, metrics in judged.items() if metrics is not None}

    def _gateway(self, key: str, metrics: GatewayMetrics, classes: set[str]) -> GatewayMetrics | None:
        if not self._oldest <= metrics.at <= self._newest:
            self._refused(f"{key}: {self._too_old}")
            return None
        for name in sorted(metrics.classes.keys() & classes):
            if not metrics.classes[name].is_believable:
                self._refused(f"{key}: counters of class {name} are not believable")
                return None
        if not believable(metrics.held, *metrics.in_flight.values()):
            self._refused(f"{key}: requests held or in flight are not believable")
            return None
        known = {replica.id for replica in self._observation.replicas}
        return metrics.changed(
            classes={name: metrics.classes.get(name, ClassCounters()) for name in sorted(classes)},
            in_flight={key: value for key, value in metrics.in_flight.items() if key in known},
        )

    def engines(self) -> dict[str, EngineMetrics]:
        """Metrics of the serving replicas that are believed, by id; steps that cannot be are left out."""
        serving = self._observation.with_phase(Phase.READY, Phase.DRAINING)
        told = {replica.id: replica.metrics for replica in serving if replica.metrics is not None}
        engines, unreal = {}, _with_unreal_steps(told)
        for key, metrics in told.items():
            if not believable(*metrics.numbers) or metrics.kv_usage > _FULL:
                self._refused(f"{key}: metrics are not believable")
            elif not self._oldest <= metrics.at <= self._newest:
                self._refused(f"{key}: {self._too_old}")
            elif key in unreal:
                self._refused(f"{key}: its steps are not believable")
                engines[key] = metrics.changed(samples=())
            else:
                engines[key] = metrics
        return engines

    def deltas(
        self, gateways: Mapping[str, GatewayMetrics], before: Mapping[str, GatewayMetrics]
    ) -> dict[str, ClassCounters]:
        """What came since the looks before, by class, over all gateways.

        Nothing comes from one that was never looked at (what it counted until now may be of any age), nor for a class
        whose counters were reset.
        """
        deltas: dict[str, ClassCounters] = {}
        for key in sorted(gateways.keys() & before.keys()):
            earlier = before[key].classes
            most = _LARGEST_RATE * max(1.0, gateways[key].at - before[key].at)
            for name, counters in gateways[key].classes.items():
                # A class that the earlier look did not have has been counted from zero since.
                difference = counters.minus(earlier[name]) if name in earlier else counters
                if difference is None:
                    self._refused(f"{key}: counters of class {name} were reset")
                elif max(difference.numbers) > most:
                    self._refused(f"{key}: counters of class {name} have leapt")
                    difference = None
                deltas[name] = deltas.get(name, ClassCounters()).plus(difference or ClassCounters())
        return deltas

    def _refused(self, fault: str) -> None:
        self.faults.append(fault)


def _with_unreal_steps(told: Mapping[str, EngineMetrics]) -> set[str]:
    """Those whose steps cannot be: an engine's last one has the number of its last step."""
    stepped = {key: metrics for key, metrics in told.items() if metrics.samples}
    last = rows(metrics.samples[-1] for metrics in stepped.values())
    num_steps = np.array([metrics.steps for metrics in stepped.values()])
    real = are_believable(last) & (last[:, 0] <= num_steps + _STEPS_AHEAD)
    return set(compress(stepped, (~real).tolist()))
