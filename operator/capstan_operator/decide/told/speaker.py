"""Words what was decided at one moment: changes, the hold and its reason, the recommendation of mode Shadow.

The surprising idea: a hold and a recommendation that go on are told in the words that began them. A digest of the
inputs is only made for what is new, because it costs more than the decision itself.
"""

from collections.abc import Callable
from functools import cached_property

from capstan_api.limits import BatchLimits
from capstan_api.status import DecisionAction, DecisionStatus
from capstan_operator.decide.limits.batch_limits import Advice as LimitsAdvice
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.render import Release
from capstan_operator.decide.scaling.replicas import Advice as ReplicasAdvice
from capstan_operator.decide.times import rfc3339


class Speaker:
    """`digest` gives the hash of the inputs, by which the full record is found."""

    def __init__(self, now: float, digest: Callable[[], str]) -> None:
        self._time = rfc3339(now)
        self._digest = digest

    @cached_property
    def _inputs_hash(self) -> str:
        return self._digest()

    def changes(
        self, memory: Memory, revision: str, failure: str | None, count: ReplicasAdvice, limits: LimitsAdvice | None
    ) -> tuple[DecisionStatus, ...]:
        """What is different from the last turn on, the slowest first. `failure` is that of the rollout."""
        changes = []
        before, wanted = memory.replicas.wanted, count.memory.wanted
        if before is not None and wanted is not None and wanted != before:
            action = DecisionAction.SCALE_UP if wanted > before else DecisionAction.SCALE_DOWN
            changes.append(self._said(action, count.reason, count.message, before, wanted))
        if memory.revision and revision != memory.revision:
            reason, because = "SpecificationChanged", "the specification changed"
            if failure is not None and memory.rollout.failure is None:
                reason, because = "RolledBack", failure
            message = f"{because}: revision {memory.revision} → {revision}"
            changes.append(self._said(DecisionAction.ROLL, reason, message, memory.revision, revision))
        if limits is not None and (change := limits.change) is not None:
            old, new = _limits(change.old), _limits(change.new)
            changes.append(self._said(DecisionAction.SET_LIMITS, change.reason, change.message, old, new))
        return tuple(changes)

    def hold(self, wanted: int, count: ReplicasAdvice, last: DecisionStatus | None) -> DecisionStatus:
        """Nothing changes. The figures in the sentence are new, its hash is that of the turn that began the hold."""
        goes_on = last is not None and (last.action, last.reason) == (DecisionAction.HOLD, count.reason)
        inputs_hash = last.inputs_hash if last is not None and goes_on else None
        return self._said(DecisionAction.HOLD, count.reason, count.message, wanted, wanted, inputs_hash)

    def recommendation(
        self, kept: int, advice: ReplicasAdvice, limits: LimitsMemory, release: Release, last: DecisionStatus | None
    ) -> DecisionStatus:
        """What mode Auto would do: about replicas, and when these may stay, about limits."""
        action, reason, message = DecisionAction.HOLD, advice.reason, advice.message
        old, new = str(kept), str(advice.recommended)
        if advice.recommended != kept:
            action = DecisionAction.SCALE_UP if advice.recommended > kept else DecisionAction.SCALE_DOWN
        elif limits.limits is not None and limits.limits != release.args.envelope.top:
            action, reason, message = DecisionAction.SET_LIMITS, limits.reason, limits.message
            old, new = _limits(release.args.envelope.top), _limits(limits.limits)
        if last is not None and (last.action, last.reason, last.to_value) == (action, reason, new):
            return last
        return self._said(action, reason, message, old, new)

    def _said(
        self,
        action: DecisionAction,
        reason: str,
        message: str,
        old: object,
        new: object,
        inputs_hash: str | None = None,
    ) -> DecisionStatus:
        return DecisionStatus.made(
            time=self._time,
            action=action,
            reason=reason,
            message=message,
            from_value=str(old),
            to_value=str(new),
            inputs_hash=inputs_hash or self._inputs_hash,
        )


def _limits(limits: BatchLimits) -> str:
    return f"{limits.max_sequences}x{limits.max_batched_tokens}"
