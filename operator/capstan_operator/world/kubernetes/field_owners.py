"""Who has set which field of an object, as the API server writes it down in `metadata.managedFields`. Pure.

The surprising idea: server-side apply takes away a field that we no longer set only when we *applied* it before. An
object that was created in one request has its fields from a creation, so these are made applied ones before the first
apply, which is what kubectl does when it changes from client-side to server-side apply.
"""

from collections.abc import Mapping
from typing import Any

_CREATED, _APPLIED = "Update", "Apply"


def as_applied(manifest: Mapping[str, Any], manager: str) -> list[dict[str, Any]] | None:
    """`managedFields` with what `manager` created counted as applied; None when there is nothing of that kind."""
    entries = manifest["metadata"].get("managedFields", ())
    if not any(_was_created(entry, manager) for entry in entries):
        return None
    return [{**entry, "operation": _APPLIED} if _was_created(entry, manager) else entry for entry in entries]


def _was_created(entry: Mapping[str, Any], manager: str) -> bool:
    # What was set through a subresource is another's business: a status, a scale.
    return entry["manager"] == manager and entry["operation"] == _CREATED and not entry.get("subresource")
