"""Kubernetes Events for the moments of one InferenceDeployment: what `kubectl describe` shows.

An Event is a courtesy. It is written at most once for the same words in ten minutes and never more than a few in a row,
and one that cannot be written is logged and forgotten: the decision itself stands in the status.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from capstan_api import names
from capstan_api.status import DecisionStatus
from capstan_operator.errors import ApiConflict, ApiError, NotLeader
from capstan_operator.world.kubernetes.access import EVENTS
from capstan_operator.world.kubernetes.api import FIELD_MANAGER, KubernetesApi
from capstan_operator.world.kubernetes.identity import Identity

logger = logging.getLogger(__name__)

_SAME_WORDS_S: Final = 600.0
_BURST: Final = 10
_REFILL_S: Final = 30.0
_LONGEST_NOTE: Final = 1000
# Moments that somebody should look into; everything else is the law at work.
_WARNINGS: Final = frozenset({"RolledBack"})


class Announcer:
    """Writes the Events of one InferenceDeployment. `wall` gives epoch seconds, `clock` seconds that never jump."""

    def __init__(
        self,
        api: KubernetesApi,
        identity: Identity,
        instance: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._identity = identity
        self._instance = instance
        self._clock = clock
        self._wall = wall
        self._said: dict[tuple[str, str], float] = {}
        self._tokens, self._refilled_at = float(_BURST), clock()

    async def announce(self, decision: DecisionStatus) -> None:
        """Tell of a decision, unless the same was told just now or too much was."""
        now, words = self._clock(), (decision.reason, decision.message)
        self._said = {key: at for key, at in self._said.items() if now - at < _SAME_WORDS_S}
        self._tokens = min(_BURST, self._tokens + (now - self._refilled_at) / _REFILL_S)
        self._refilled_at = now
        if words in self._said or self._tokens < 1:
            return
        self._tokens -= 1
        self._said[words] = now
        try:
            await self._api.create(EVENTS, event(self._identity, decision, self._instance, self._wall()))
        except ApiConflict:
            # Another life of this operator has told it already.
            return
        except (ApiError, NotLeader) as error:
            logger.warning("%s/%s: no Event: %s", self._identity.namespace, self._identity.name, error)


def event(identity: Identity, decision: DecisionStatus, instance: str, now: float) -> dict[str, Any]:
    """The Event of a decision; the same decision has the same name."""
    parts = (identity.uid, decision.time, decision.action, decision.reason, decision.message)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": f"{identity.name}.{digest}", "namespace": identity.namespace},
        "eventTime": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning" if decision.reason in _WARNINGS else "Normal",
        "reason": decision.reason,
        "action": decision.action.value,
        "note": decision.message[:_LONGEST_NOTE],
        "reportingController": f"{names.GROUP}/{FIELD_MANAGER}",
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": identity.name,
            "namespace": identity.namespace,
            "uid": identity.uid,
        },
    }
