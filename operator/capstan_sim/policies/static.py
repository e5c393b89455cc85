"""A fleet that never changes: what an operator who knows the trace would buy, and the yardstick of every saving."""

from capstan_sim.policy import Observation, Target


class Static:
    """`replicas` from the first tick to the last; limits as they are."""

    interval_s = 60.0

    def __init__(self, replicas: int) -> None:
        self._target = Target(replicas)

    def decide(self, seen: Observation) -> Target:
        """The same count, whatever is seen."""
        return self._target
