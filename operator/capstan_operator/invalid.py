"""The status of a resource that the API server took and we cannot understand. Pure.

Everything that is known of it stays: only the conditions that speak of the fault are set, so that the memory of the law
survives until somebody corrects the spec. They carry the generation that they judge, and so does the status: whoever
waits for the resource learns that this generation will never be ready.
"""

from collections.abc import Mapping
from typing import Any

from capstan_api.manifest import InvalidResource
from capstan_api.status import Condition, ConditionStatus, ConditionType, InferenceDeploymentStatus
from capstan_operator.decide.times import rfc3339
from capstan_operator.fleet import known_status

_LONGEST_MESSAGE = 1024
_SPEAKING = {
    ConditionType.READY: ConditionStatus.FALSE,
    ConditionType.CONFIGURATION_VALID: ConditionStatus.FALSE,
    ConditionType.STALLED: ConditionStatus.TRUE,
}


def not_understood(manifest: Mapping[str, Any], error: InvalidResource, now: float) -> InferenceDeploymentStatus:
    """The status that the resource in `manifest` is to have."""
    status = known_status(manifest)
    conditions = {condition.type: condition for condition in status.conditions}
    # It gets nowhere: whoever follows kstatus must not go on waiting.
    conditions.pop(ConditionType.RECONCILING, None)
    for kind, truth in _SPEAKING.items():
        before = conditions.get(kind)
        goes_on = before is not None and before.status is truth
        conditions[kind] = Condition(
            type=kind,
            status=truth,
            reason="InvalidSpec",
            message=str(error)[:_LONGEST_MESSAGE],
            last_transition_time=before.last_transition_time if before and goes_on else rfc3339(now),
            observed_generation=error.generation,
        )
    return status.model_copy(update={"conditions": list(conditions.values()), "observed_generation": error.generation})
