"""Which numbers may be believed: what is not finite, negative, absurd, too old or runs backwards is dropped and named.

A source is dropped as a whole, because half of one would look like a fall in load; it then counts as missing.
"""

from capstan_operator.decide.observation import (
    ClassCounters,
    EngineMetrics,
    GatewayMetrics,
    Observation,
    Phase,
    believable,
)


class Judge:
    """Judges one observation at one moment, and keeps what it found wrong, one clause each."""

    def __init__(self, observation: Observation, now: float, max_age_s: float) -> None:
        self.faults = list(observation.faults)
        self._observation = observation
        self._now = now
        self._max_age_s = max_age_s

    def gateway(self, classes: set[str]) -> GatewayMetrics | None:
        """The gateway's metrics with exactly these classes and only replicas that exist; None when not believed."""
        metrics = self._observation.gateway.metrics if self._observation.gateway else None
        if metrics is None or not self._is_fresh("gateway", metrics.at):
            return None
        for name in sorted(metrics.classes.keys() & classes):
            if not metrics.classes[name].is_believable:
                self._refused(f"gateway: counters of class {name} are not believable")
                return None
        if not believable(metrics.held, *metrics.in_flight.values()):
            self._refused("gateway: requests held or in flight are not believable")
            return None
        known = {replica.id for replica in self._observation.replicas}
        return metrics.model_copy(
            update={
                "classes": {name: metrics.classes.get(name, ClassCounters()) for name in sorted(classes)},
                "in_flight": {key: value for key, value in metrics.in_flight.items() if key in known},
            }
        )

    def engines(self) -> dict[str, EngineMetrics]:
        """Metrics of the serving replicas that are believed, by id."""
        engines = {}
        for replica in self._observation.with_phase(Phase.READY, Phase.DRAINING):
            metrics = replica.metrics
            if metrics is None:
                continue
            numbers = [value for _, value in metrics if isinstance(value, (int, float))]
            if not believable(*numbers) or metrics.kv_usage > 1.001:
                self._refused(f"{replica.id}: metrics are not believable")
            elif self._is_fresh(replica.id, metrics.at):
                engines[replica.id] = metrics
        return engines

    def deltas(self, gateway: GatewayMetrics | None, before: GatewayMetrics | None) -> dict[str, ClassCounters]:
        """What came since the look before, by class; nothing for a class whose counters were reset."""
        if gateway is None or before is None:
            return {}
        deltas = {}
        for name, counters in gateway.classes.items():
            # A class that the earlier look did not have has been counted from zero since.
            difference = counters.minus(before.classes[name]) if name in before.classes else counters
            if difference is None:
                self._refused(f"gateway: counters of class {name} were reset")
            deltas[name] = difference or ClassCounters()
        return deltas

    def _is_fresh(self, source: str, at: float) -> bool:
        if self._now - self._max_age_s <= at <= self._now + self._max_age_s:
            return True
        self._refused(f"{source}: metrics are not from the last {self._max_age_s:g} s")
        return False

    def _refused(self, fault: str) -> None:
        self.faults.append(fault)
