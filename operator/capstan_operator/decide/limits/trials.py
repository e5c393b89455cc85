"""What trials of batch limits are made of: counts of requests, looks at them, the trial, its verdict, and refusals.

Decides nothing. The surprising idea: everything is counted per process. A replica that has restarted under its name is
another one, and what it counted before is nobody's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from capstan_api.limits import BatchLimits
from capstan_operator.decide.curve import Array
from capstan_operator.decide.seen.observation import Phase, Replica
from capstan_operator.decide.seen.tracks import Tracks
from capstan_operator.decide.values import Value


class Tally(NamedTuple):
    """Requests that ended, and how many of them were late by either threshold, by TTFT, by TPOT."""

    requests: float = 0
    missed: float = 0
    late_ttft: float = 0
    late_tpot: float = 0

    def share(self, which: int) -> float:
        """Of the requests, those in the field with this index."""
        return self[which] / self.requests if self.requests else 0.0


class Look(Value):
    """What all replicas had counted at one moment."""

    at: float
    tracks: Tracks

    def tallies(self, canary: Replica, serving: Sequence[Replica], tracks: Tracks) -> tuple[Tally, Tally]:
        """What came to the canary since, and to its peers; who is another process by now counts for nothing."""
        gained = tracks.gained(self.tracks, serving)
        is_canary = np.array([replica is canary for replica in serving])
        return _tally(gained[is_canary]), _tally(gained[~is_canary])


def _tally(gained: Array) -> Tally:
    """Of all rows [N, 4]: requests, and good ones."""
    requests, *good = np.add.reduce(gained, axis=0).tolist()
    return Tally(requests, *(requests - each for each in good))


class Trial(Value):
    """Limits that one replica has instead of everybody's. It is of one process: a restart has other limits."""

    replica: str
    created_at: float
    restarts: int
    limits: BatchLimits
    instead_of: BatchLimits
    since: float
    seen_at: float
    before: Tally
    """What came to it before the trial."""
    peers_before: Tally


class Refusal(Value):
    """A step that was reverted."""

    limits: BatchLimits
    instead_of: BatchLimits
    until: float
    seconds: float = 0
    """How long it was refused for last by what was measured; twice that the next time."""

    def covers(self, limits: BatchLimits, instead_of: BatchLimits) -> bool:
        """Whether these limits go as far, in the direction in which the reverted ones went."""
        steps = (
            (self.limits.max_sequences, self.instead_of.max_sequences, limits.max_sequences, instead_of.max_sequences),
            (
                self.limits.max_batched_tokens,
                self.instead_of.max_batched_tokens,
                limits.max_batched_tokens,
                instead_of.max_batched_tokens,
            ),
        )
        return any(
            (refused > was and asked > now and asked >= refused) or (refused < was and asked < now and asked <= refused)
            for refused, was, asked, now in steps
        )


class Outcome(StrEnum):
    """The reasons of the decisions about trials; the first begins one."""

    TRIED = "CanaryTrial"
    KEPT = "CanaryKept"
    REVERTED = "CanaryReverted"
    ENDED = "CanaryEnded"


class Verdict(Value):
    """What became of a trial, with what it rests on."""

    outcome: Outcome
    trial: Trial
    because: str
    canary: Tally = Tally()
    peers: Tally = Tally()


@dataclass(frozen=True)
class Fleet:
    """Everybody who could have a trial, and what they have counted."""

    replicas: tuple[Replica, ...]
    tracks: Tracks
    max_age_s: float
    answer_s: float
    """How long a mean answer takes."""
    allowed: float
    """The share of requests that may miss."""

    def serving(self, now: float) -> tuple[Replica, ...]:
        """Those that are ready and have told something lately."""
        ready = [replica for replica in self.replicas if replica.phase is Phase.READY]
        return tuple(self.tracks.heard(ready, now, self.max_age_s))
