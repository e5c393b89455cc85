"""Which engines have exactly the limits that all of them are to have.

Knows no lease and no action. The surprising idea: no engine has limits outside its own envelope, so that equal numbers
need no closer look. Only the few that differ are asked about their envelope.
"""

from operator import attrgetter
from typing import Final

from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.seen.observation import Observation, Phase

figures: Final = attrgetter("max_sequences", "max_batched_tokens")
"""Of limits: comparing these takes a tenth of the time that comparing models does."""


def obedient(observation: Observation, memory: LimitsMemory) -> set[str]:
    """Ready replicas that have told of the limits of all. The one on trial is to have others."""
    limits, trial = memory.limits, memory.canary.trial
    if limits is None:
        return set()
    asked = figures(limits)
    ready = observation.with_phase(Phase.READY)
    same = {r.id for r in ready if r.limits is not None and figures(r.limits.limits) == asked}
    return same - {trial.replica} if trial is not None else same
