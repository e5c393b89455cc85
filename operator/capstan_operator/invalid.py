"""The status of a resource that the API server took and we cannot understand. Pure.

Everything that is known of it stays: only the two conditions that speak of the fault are set, so that the memory of the
law survives until somebody corrects the spec.
"""

from collections.abc import Mapping
from typing import Any

from capstan_api import names
from capstan_api.manifest import InvalidResource
from capstan_api.status import Condition, ConditionStatus, ConditionType
from capstan_operator.decide.times import rfc3339
from capstan_operator.fleet import known_status

_LONGEST_MESSAGE = 1024
_SPEAKING = (ConditionType.READY, ConditionType.CONFIGURATION_VALID)


def not_understood(manifest: Mapping[str, Any], error: InvalidResource, now: float) -> dict[str, Any]:
    """What is to be applied to the status of the resource in `manifest`."""
    status, metadata = known_status(manifest), manifest["metadata"]
    conditions = {condition.type: condition for condition in status.conditions}
    for kind in _SPEAKING:
        before = conditions.get(kind)
        since = rfc3339(now)
        if before is not None and before.status is ConditionStatus.FALSE:
            since = before.last_transition_time
        conditions[kind] = Condition(
            type=kind,
            status=ConditionStatus.FALSE,
            reason="InvalidSpec",
            message=str(error)[:_LONGEST_MESSAGE],
            last_transition_time=since,
            observed_generation=metadata.get("generation", 0),
        )
    status = status.model_copy(update={"conditions": list(conditions.values())})
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
