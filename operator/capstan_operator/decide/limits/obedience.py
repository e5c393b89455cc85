"""Which engines have other limits than all of them are to have.

Knows no lease and no action. The surprising idea: no engine has limits outside its own envelope, so that equal numbers
need no closer look. Only the few that differ are asked about their envelope.
"""

from operator import attrgetter
from typing import Final, TypeAlias

from capstan_api.limits import LimitsState
from capstan_operator.decide.lifelong import lifelong, lifelong_by
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.seen.observation import Observation, Phase, Replica

Teller: TypeAlias = tuple[Replica, LimitsState]
figures: Final = attrgetter("max_sequences", "max_batched_tokens")
"""Of limits: comparing these takes a tenth of the time that comparing models does."""


@lifelong
def limits_told(observation: Observation) -> tuple[Teller, ...]:
    """Ready replicas that have told of their limits, with what they told."""
    return tuple([(r, state) for r in observation.with_phase(Phase.READY) if (state := r.limits) is not None])


def different(observation: Observation, memory: LimitsMemory) -> tuple[Teller, ...]:
    """Those that have told of other limits than those of all. The one on trial is to have others."""
    limits, trial = memory.limits, memory.canary.trial
    if limits is None:
        return limits_told(observation)
    return _different(observation, figures(limits), trial.replica if trial is not None else None)


@lifelong_by
def _different(observation: Observation, asked: tuple[int, int], on_trial: str | None) -> tuple[Teller, ...]:
    """Kept, because actions and status both ask."""
    return tuple(
        [
            (replica, state)
            for replica, state in limits_told(observation)
            if figures(state.limits) != asked or (on_trial is not None and replica.id == on_trial)
        ]
    )
