"""Whether an object in the cluster still is what we applied.

Two questions, because each sees what the other cannot. The digest in an annotation tells that we would now apply
something else, fields that we no longer set included. The comparison tells that somebody has changed what we set; it
looks at our fields only, so that defaults, status and other people's additions do not count.

Pure. Relies on amounts being written as Kubernetes writes them (`quantities`).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from capstan_api import names

# Maps that server-side apply replaces as a whole: an additional key in them is drift.
_ATOMIC: Final = frozenset({"selector", "matchLabels"})
ANNOTATION: Final = f"{names.GROUP}/applied"


def stamped(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the digest of itself in an annotation."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def is_as_wanted(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every field of `wanted`, the stamp among them, has its value in `live`."""
    return _contains(live, wanted)


def _contains(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        # What is empty is not always kept: {} and an absent field are the same.
        return isinstance(live, Mapping) and all(
            (_contains(live[key], value) and (key not in _ATOMIC or _contains(value, live[key])))
            if key in live
            else not value and value is not False and value != 0
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(_contains, live, wanted))
    return bool(live == wanted)
