"""The operator's pure heart: from an observation to a decision, with nothing in between but arithmetic.

`law` leads through the rooms: `seen`, `fleets`, `limits`, `scaling`, `told`. No module here imports HTTP, Kubernetes,
clocks, randomness, the environment or logging. Inputs and outputs are values that go through JSON unchanged, so that
any decision can be replayed from its record.
"""

from capstan_operator.decide.decision import Decision
from capstan_operator.decide.law import decide
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.seen.observation import Observation

__all__ = ["Decision", "Memory", "Observation", "decide"]
