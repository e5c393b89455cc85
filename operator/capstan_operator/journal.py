"""What the loops did, in the log: every change with its sentence, every failure once for as long as it stays the same.

With the level DEBUG the whole record of a decision is written too: `capstan replay` decides it again from its inputs,
and the digest in the status finds it.
"""

import json
import logging

from capstan_operator.reconcile import Turn, record
from capstan_operator.world.kubernetes.store import Key

logger = logging.getLogger(__name__)


class Journal:
    """Remembers what was said last of each resource."""

    def __init__(self) -> None:
        self._errors: dict[Key, str] = {}

    def turned(self, key: Key, turn: Turn) -> None:
        """A loop has made a turn."""
        who, error = f"{key.namespace}/{key.name}", turn.error or ""
        if error and error != self._errors.get(key):
            logger.warning("%s: %s", who, error)
        if not error and self._errors.get(key):
            logger.info("%s: all was done again", who)
        self._errors[key] = error
        if turn.decision is None:
            return
        for said in turn.decision.changes:
            logger.info("%s: %s, %s: %s [inputs %s]", who, said.action, said.reason, said.message, said.inputs_hash)
        if turn.decision.changes and logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: decided %s", who, json.dumps(record(turn)))

    def gone(self, key: Key) -> None:
        """Nobody looks after the resource any more."""
        self._errors.pop(key, None)
