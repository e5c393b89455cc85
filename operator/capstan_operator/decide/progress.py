"""Whether a rollout gets anywhere, and what to return to when it does not.

Decides which revision is in force; replacing replicas is `rollout`'s work. A revision is stable once every replica is
of it and serves; the release of the last stable one is kept whole, so that its replicas can be started again although
the resource has moved on.

The surprising idea: a rollout is judged by its progress alone, and a download that goes on is progress. What has not
moved for the deadline has failed, whatever the reason; what an engine calls infeasible has failed at once.
"""

from collections.abc import Iterable

from capstan_api.spec import Rollout, Switch
from capstan_operator.decide.render import Release
from capstan_operator.decide.seen.observation import Phase, Replica
from capstan_operator.decide.values import Value
from capstan_operator.decide.verdicts import INFEASIBLE

# Of the time between two looks, no more than this counts: an operator that was away has seen no standstill.
_LONGEST_TURN_S = 60.0
_LONGEST_FAILURE = 500


class RolloutMemory(Value):
    target: str = ""
    """The revision that the resource asks for."""
    stable: Release | None = None
    progress_at: float = 0
    """When the target was last seen to get on."""
    num_ready: int = 0
    """Most of its replicas that were ready at the same time."""
    done_bytes: int = 0
    """Most that any of its replicas had fetched."""
    failure: str | None = None
    """Why the target has failed. Cleared by another target, or by its success after all."""

    @property
    def is_underway(self) -> bool:
        return self.stable is None or self.stable.revision != self.target

    def in_force(self, target: Release, auto_rollback: Switch) -> Release:
        """The release to have replicas of."""
        if self.failure is None or self.stable is None or auto_rollback is Switch.DISABLED:
            return target
        return self.stable

    def followed(
        self,
        target: Release,
        replicas: Iterable[Replica],
        rollout: Rollout,
        *,
        wanted: int,
        last: float,
        now: float,
        obstacle: str,
    ) -> "RolloutMemory":
        """The memory after one more look. `last` is the moment of the look before; `obstacle` says why no replica
        of the target can be started, empty when one can.
        """
        if self.target != target.revision:
            memory = RolloutMemory.made(target=target.revision, stable=self.stable, progress_at=now)
        else:
            unseen_s = max(0.0, now - last - _LONGEST_TURN_S)
            memory = self.changed(progress_at=self.progress_at + unseen_s) if unseen_s else self
        # What has proved itself is judged no more.
        if not memory.is_underway and memory.failure is None:
            return memory
        live = [r for r in replicas if r.phase is not Phase.DRAINING]
        ours = [r for r in live if r.revision == target.revision]
        ready = [r for r in ours if r.phase is Phase.READY]
        # For want of room a replica may be pending long after its revision has proved itself.
        pending = [r for r in ours if r.phase is Phase.PENDING]
        is_alone = len(live) == len(ours) == len(ready) + len(pending)
        if ready and is_alone and not obstacle:
            return memory.changed(stable=target if memory.is_underway else memory.stable, failure=None)
        if memory.failure is not None:
            return memory
        infeasible = next((r for r in ours if r.phase is Phase.FAILED and r.message.startswith(INFEASIBLE)), None)
        if infeasible is not None:
            return memory.changed(failure=_blamed(infeasible))
        fetched = max((r.startup.done_bytes for r in ours if r.startup is not None), default=0)
        if wanted == 0:
            memory = memory.changed(progress_at=now)
        elif len(ready) > memory.num_ready or fetched > memory.done_bytes:
            most = {"num_ready": max(len(ready), memory.num_ready), "done_bytes": max(fetched, memory.done_bytes)}
            memory = memory.changed(progress_at=now, **most)
        if now - memory.progress_at <= rollout.progress_deadline_seconds:
            return memory
        culprit = min((r for r in ours if r.phase is not Phase.READY), key=_guilt, default=None)
        why = _blamed(culprit) if culprit is not None else obstacle or "no replica of it was started"
        failure = f"no progress for {rollout.progress_deadline_seconds} s: {why}"
        return memory.changed(failure=failure[:_LONGEST_FAILURE])


def _guilt(replica: Replica) -> tuple[int, str]:
    """Sorts those first that can tell what is wrong."""
    return (Phase.FAILED, Phase.PENDING, Phase.STARTING).index(replica.phase), replica.id


def _blamed(replica: Replica) -> str:
    return f"{replica.id} is {replica.phase.lower()}: {replica.message or 'it gave no reason'}"[:_LONGEST_FAILURE]
