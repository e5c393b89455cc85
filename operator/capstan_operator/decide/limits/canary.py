"""Batch limits on trial: one replica gets them first, and all do only if its requests fare no worse than its peers'.

    begin ─► answers of before run out ─► measured beside the peers ─► kept | reverted, and refused for a while
                                      └─► ended without a verdict: it died, drains, went blind, has no peers

A trial compares shares of requests that missed a threshold, by the engines' own exact counters: what the canary missed
beyond its peers, less what it missed beyond them before (it may be slower hardware), must stay within chance. Shares of
what was offered and no rates, because the router sends a slower replica fewer requests.

Knows neither step times nor rungs: it is offered limits and tells what became of them. The surprising idea: the canary
is the replica whose steps take longest. What it can bear, all can; a fast one would vouch for what the slow one cannot.
"""

import math
from typing import Final

from capstan_api.limits import BatchLimits
from capstan_operator.decide.limits.trials import Fleet, Look, Outcome, Refusal, Tally, Trial, Verdict
from capstan_operator.decide.seen.observation import Phase, Replica
from capstan_operator.decide.seen.tracks import Tracks
from capstan_operator.decide.values import Value

_MARK_S: Final = 20.0
"""Between two looks that are kept to compare with; a replica without one can be no canary."""
_SHORTEST_SETTLING_S, _LONGEST_SETTLING_S = 4.0, 30.0
_SHORTEST_S, _LONGEST_S = 8.0, 60.0
_ENOUGH_REQUESTS, _FEWEST_REQUESTS = 60, 12
_ERRORS: Final = 2.5
"""Standard errors that are chance; with a look a second, one trial in thirty of harmless limits is reverted."""
_SLACK: Final = 0.25
"""Of the share of requests that may miss."""
_FIRST_REFUSAL_S, _LONGEST_REFUSAL_S = 60.0, 960.0
_PAUSE_S: Final = 30.0
"""After a trial that came to nothing, until its answers have run out."""
_MOST_REFUSALS: Final = 4


class CanaryMemory(Value):
    trial: Trial | None = None
    refusals: tuple[Refusal, ...] = ()
    paused_until: float = 0
    marks: tuple[Look, ...] = ()
    """Two of them at most, older first. Not kept over a restart, like the window that they come from."""
    begun: Look | None = None
    """When the trial's answers began to count; likewise."""

    def watched(self, fleet: Fleet, now: float) -> "CanaryMemory":
        """The memory after one more look at the fleet."""
        if self.marks and now - self.marks[-1].at < _MARK_S:
            return self
        return self.changed(marks=(*self.marks[-1:], Look(at=now, tracks=fleet.tracks)))

    def refuses(self, limits: BatchLimits, instead_of: BatchLimits, now: float) -> bool:
        """Whether it is too early for such a step."""
        return now < self.paused_until or any(r.until > now and r.covers(limits, instead_of) for r in self.refusals)

    def begin(self, limits: BatchLimits, instead_of: BatchLimits, fleet: Fleet, now: float) -> "CanaryMemory | None":
        """The memory with a trial; None while there is nobody to have it, or nothing to compare it with."""
        serving, mark = fleet.serving(now), self.marks[0] if self.marks else None
        if mark is None or now - mark.at < _MARK_S / 2:
            return None
        step_s = {r.id: s for r in serving if (s := _step_s(mark, r, fleet.tracks)) is not None}
        if len(step_s) < 2:
            return None
        slowest = max(serving, key=lambda r: (step_s.get(r.id, -1.0), r.id))
        before, peers_before = mark.tallies(slowest, serving, fleet.tracks)
        trial = Trial(
            replica=slowest.id,
            created_at=slowest.created_at,
            restarts=slowest.restarts,
            limits=limits,
            instead_of=instead_of,
            since=now,
            seen_at=now,
            before=before,
            peers_before=peers_before,
        )
        return self.changed(trial=trial, begun=None)

    def followed(self, fleet: Fleet, now: float) -> "tuple[CanaryMemory, Verdict | None]":
        """The memory after one more turn, and the verdict of a trial that ends with it."""
        trial = self.trial
        if trial is None:
            return self, None
        serving = fleet.serving(now)
        mine = next((r for r in serving if r.id == trial.replica), None)
        obstacle = _obstacle(trial, mine, fleet, now)
        if obstacle is None and len(serving) < 2:
            obstacle = "nobody else serves"
        if obstacle is not None or mine is None:
            return self.ended(obstacle or "it is gone", now)
        memory = self.changed(trial=trial.changed(seen_at=now))
        settling_s = min(max(fleet.answer_s, _SHORTEST_SETTLING_S), _LONGEST_SETTLING_S)
        if now - trial.since < settling_s:
            return memory, None
        if mine.limits is not None and mine.limits.limits == mine.limits.envelope.clamp(trial.instead_of):
            return memory.ended("it did not take them", now)
        if memory.begun is None:
            return memory.changed(begun=Look(at=now, tracks=fleet.tracks)), None
        return memory._judged(memory.begun, mine, serving, fleet, now)

    def _judged(
        self, begun: Look, mine: Replica, serving: tuple[Replica, ...], fleet: Fleet, now: float
    ) -> "tuple[CanaryMemory, Verdict | None]":
        trial, seen_s = self.trial, now - begun.at
        assert trial is not None, "only a trial is judged"
        canary, peers = begun.tallies(mine, serving, fleet.tracks)
        fell = _fell(trial, canary, peers, fleet.allowed)
        if fell is not None:
            memory = self.reverted(trial.limits, trial.instead_of, now)
            because = f"{fell}; not again for {memory.refusals[0].seconds:.0f} s"
            verdict = Verdict(outcome=Outcome.REVERTED, trial=trial, because=because, canary=canary, peers=peers)
            return memory, verdict
        is_long = seen_s >= max(_LONGEST_S, 2 * fleet.answer_s)
        if not is_long and (seen_s < _SHORTEST_S or min(canary.requests, peers.requests) < _ENOUGH_REQUESTS):
            return self, None
        if min(canary.requests, peers.requests) < _FEWEST_REQUESTS:
            return self.ended("too few requests came to tell", now)
        because = f"{_missed(trial.replica, canary)}, {_missed('its peers', peers)}"
        verdict = Verdict(outcome=Outcome.KEPT, trial=trial, because=because, canary=canary, peers=peers)
        return self.without_trial(), verdict

    def ended(self, because: str, now: float) -> "tuple[CanaryMemory, Verdict]":
        """The trial is over without a verdict."""
        assert self.trial is not None, "only a trial can end"
        verdict = Verdict(outcome=Outcome.ENDED, trial=self.trial, because=because)
        return self.without_trial().changed(paused_until=now + _PAUSE_S), verdict

    def without_trial(self) -> "CanaryMemory":
        """The memory with what is known of steps, and none underway.

        What was counted during a trial would excuse the next one: looks begin anew.
        """
        return self.changed(trial=None, begun=None, marks=())

    def reverted(
        self, limits: BatchLimits, instead_of: BatchLimits, now: float, *, was_measured: bool = True
    ) -> "CanaryMemory":
        """The memory after limits that were too much, for one replica or for all: these and all beyond them are
        refused, and if measured answers said so, twice as long as the last time.
        """
        lately = [r for r in self.refusals if now < r.until + _LONGEST_REFUSAL_S]
        new = Refusal(limits=limits, instead_of=instead_of, until=now + _FIRST_REFUSAL_S)
        again = max((r.seconds for r in lately if r.covers(limits, instead_of)), default=0.0)
        beyond = [r for r in lately if new.covers(r.limits, r.instead_of)]
        seconds = max((r.seconds for r in beyond), default=0.0)
        if was_measured:
            seconds = min(max(2 * again, seconds, _FIRST_REFUSAL_S), _LONGEST_REFUSAL_S)
            new = new.changed(until=now + seconds)
        new = new.changed(seconds=max(seconds, again))
        refusals = (new, *(r for r in lately if r not in beyond))[:_MOST_REFUSALS]
        if self.trial is None:
            return self.changed(refusals=refusals)
        return self.without_trial().changed(refusals=refusals, paused_until=now + _PAUSE_S)


def _obstacle(trial: Trial, mine: Replica | None, fleet: Fleet, now: float) -> str | None:
    """Why the trial cannot go on with its replica."""
    if now - trial.seen_at > fleet.max_age_s:
        return f"nobody looked for {now - trial.seen_at:.0f} s"
    if mine is not None:
        same = (mine.created_at, mine.restarts) == (trial.created_at, trial.restarts)
        return None if same else "it has restarted"
    present = next((r for r in fleet.replicas if r.id == trial.replica), None)
    if present is None:
        return "it is gone"
    return "it tells nothing any more" if present.phase is Phase.READY else f"it is {present.phase.lower()}"


def _step_s(mark: Look, replica: Replica, tracks: Tracks) -> float | None:
    """Mean seconds of the replica's steps since the mark, 0 when it took none; None when it was not there."""
    then, now = mark.tracks.get(replica.id), tracks.get(replica.id)
    if then is None or now is None or not then.is_of(replica):
        return None
    num_steps, busy_s = now.last_step - then.last_step, now.busy_seconds - then.busy_seconds
    return max(0.0, busy_s / num_steps) if num_steps > 0 else 0.0


def _fell(trial: Trial, canary: Tally, peers: Tally, allowed: float) -> str | None:
    """By what the canary's requests fare worse than its peers', by more than before and more than chance."""
    for name, late in (("missed", 1), ("were late by TTFT", 2), ("were late by TPOT", 3)):
        behind, variance = _behind(canary, peers, late)
        already, doubt = _behind(trial.before, trial.peers_before, late)
        if already > 0:
            behind, variance = behind - already, variance + doubt
        if behind - _SLACK * allowed > _ERRORS * math.sqrt(variance):
            here, there = 100 * canary.share(late), 100 * peers.share(late)
            return (
                f"{here:.1f} % of {canary.requests:.0f} requests on {trial.replica} {name}, "
                f"{there:.1f} % of {peers.requests:.0f} on its peers"
            )
    return None


def _behind(canary: Tally, peers: Tally, late: int) -> tuple[float, float]:
    """By how much the canary's share is larger, and the variance of that if nothing but chance made it so.

    The two-proportion test with the pooled share, by the rule of succession: few requests without a miss prove nothing.
    """
    pooled = (canary[late] + peers[late] + 1) / (canary.requests + peers.requests + 2)
    variance = pooled * (1 - pooled) * (1 / max(canary.requests, 1) + 1 / max(peers.requests, 1))
    return canary.share(late) - peers.share(late), variance


def _missed(who: str, tally: Tally) -> str:
    return f"{100 * tally.share(1):.1f} % of {tally.requests:.0f} requests on {who} missed"
