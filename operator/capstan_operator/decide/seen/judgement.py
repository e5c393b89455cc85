"""Which numbers may be believed: what is not finite, negative, absurd, too old or runs backwards is dropped and named.

A source is dropped as a whole, because half of one would look like a fall in load; it then counts as missing.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capstan_operator.decide.curve import Array, everywhere
from capstan_operator.decide.seen.counters import LARGEST_COUNT, NOTHING, ClassCounters, believable
from capstan_operator.decide.seen.engines import COLUMNS, Engines
from capstan_operator.decide.seen.observation import GatewayMetrics, Observation, Phase
from capstan_operator.decide.seen.steps import are_believable

# Of requests or tokens through one gateway: text for more would not fit any network.
_LARGEST_RATE: Final = 1e8
# Samples and counters of an engine are asked for at the same time, and it goes on meanwhile.
_STEPS_AHEAD: Final = 10_000
# Of what an engine tells; of a KV cache all, with what rounding may add.
_MOST: Final[Array] = np.array([1.001 if name == "kv_usage" else LARGEST_COUNT for name in COLUMNS])


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
        known, in_flight = frozenset(self._observation.ids), metrics.in_flight
        if not in_flight.keys() <= known:
            in_flight = {key: value for key, value in in_flight.items() if key in known}
        counted = {name: metrics.classes.get(name, NOTHING) for name in sorted(classes)}
        return metrics.changed(classes=counted, in_flight=in_flight)

    def engines(self) -> Engines:
        """What is believed of the serving replicas; steps that cannot be are left out."""
        told = Engines.of(self._observation.with_phase(Phase.READY, Phase.DRAINING))
        at, with_steps = told.column("at"), _have_real_steps(told)
        fresh = (self._oldest <= at) & (at <= self._newest)
        # Neither NaN nor an infinity lies between the two.
        sane = (told.numbers >= 0) & (told.numbers <= _MOST)
        if everywhere(sane) and everywhere(fresh & with_steps):
            return told
        real: NDArray[np.bool_] = np.logical_and.reduce(sane, axis=1)
        for key, *passed in zip(told.ids, real.tolist(), fresh.tolist(), with_steps.tolist(), strict=True):
            if not all(passed):
                faults = ("metrics are not believable", self._too_old, "its steps are not believable")
                self._refused(f"{key}: {faults[passed.index(False)]}")
        return told.only(real & fresh, with_steps)

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
                difference = difference or NOTHING
                deltas[name] = deltas[name].plus(difference) if name in deltas else difference
        return deltas

    def _refused(self, fault: str) -> None:
        self.faults.append(fault)


def _have_real_steps(told: Engines) -> NDArray[np.bool_]:
    """[N] Whether their steps can be: an engine's last one has the number of its last step."""
    last = told.last_steps
    return are_believable(last) & (last[:, 0] <= told.column("steps") + _STEPS_AHEAD)
