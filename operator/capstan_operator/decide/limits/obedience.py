"""Which engines have exactly the limits that all of them are to have.

Knows no lease and no action. The surprising idea: no engine has limits outside its own envelope, so that equal numbers
need no closer look. Only the few that differ are asked about their envelope.
"""

from operator import attrgetter
from typing import Final

from capstan_operator.decide.lifelong import lifelong
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.seen.observation import Observation, Phase

figures: Final = attrgetter("max_sequences", "max_batched_tokens")
"""Of limits: comparing these takes a tenth of the time that comparing models does."""


def obedient(observation: Observation, memory: LimitsMemory) -> frozenset[str]:
    """Ready replicas that have told of the limits of all. The one on trial is to have others."""
    limits, trial = memory.limits, memory.canary.trial
    if limits is None:
        return frozenset()
    same = _with_limits(observation, limits.max_sequences, limits.max_batched_tokens)
    return same - {trial.replica} if trial is not None else same


@lifelong
def _with_limits(observation: Observation, max_sequences: int, max_batched_tokens: int) -> frozenset[str]:
    """Kept, because the actions and the status both ask."""
    told = [(r.id, r.limits.limits) for r in observation.with_phase(Phase.READY) if r.limits is not None]
    return frozenset(
        [
            key
            for key, limits in told
            if limits.max_sequences == max_sequences and limits.max_batched_tokens == max_batched_tokens
        ]
    )
