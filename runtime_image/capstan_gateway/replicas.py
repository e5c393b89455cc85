"""The replica table: where engines are, and what each of them has been given and not yet answered.

Knows no HTTP. The operator replaces the table as a whole; a replica that leaves it while it has work stays on a second
list until its last request has ended, so that removing a row never ends a request.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from capstan_api.replicas import (
    ReplicaEntry,
    ReplicaState,
    ReplicaStatus,
    ReplicaTableStatus,
    ReplicaTableUpdate,
)
from capstan_gateway.errors import StaleVersion
from capstan_gateway.routing import TOKENS_PER_BLOCK, Candidate, PrefixIndex


@dataclass(eq=False)
class Replica:
    """One engine behind the gateway."""

    id: str
    url: str
    state: ReplicaState
    num_requests: int = 0
    prefill_tokens: int = 0
    """Estimated prompt tokens of requests that have not answered anything yet."""
    aside_until: float = 0.0
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)

    def candidate(self, keys: Sequence[bytes]) -> Candidate:
        """This replica as routing sees it for a prompt with these prefix keys."""
        return Candidate(self.id, self.num_requests, self.prefill_tokens, self.prefixes.match(keys), self.aside_until)


@dataclass
class Assignment:
    """One request's place at a replica."""

    replica: Replica
    prefill_tokens: int

    def prefill_done(self) -> None:
        """The first byte has come: what is left is decoding."""
        self.replica.prefill_tokens -= self.prefill_tokens
        self.prefill_tokens = 0


class ReplicaTable:
    """All replicas. `on_ready` is called after every change that leaves a replica able to take requests."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self.version: int | None = None
        self._on_ready = on_ready
        self._rows: dict[str, Replica] = {}
        self._leaving: list[Replica] = []

    def __iter__(self) -> Iterator[Replica]:
        """Those in the table, then those that have left it with work to finish."""
        return iter([*self._rows.values(), *self._leaving])

    @property
    def num_in_flight(self) -> int:
        return sum(replica.num_requests for replica in self)

    def ready(self) -> list[Replica]:
        return [replica for replica in self._rows.values() if replica.state is ReplicaState.READY]

    def num_in_state(self, state: ReplicaState) -> int:
        return sum(replica.state is state for replica in self._rows.values())

    def replace(self, update: ReplicaTableUpdate) -> bool:
        """Make the table equal to `update`; rows that stay keep their load and prefixes. True when that changed it.

        Raises StaleVersion.
        """
        if update.version is not None and self.version is not None and update.version < self.version:
            raise StaleVersion(
                f"The table has version {self.version}, the update has {update.version}. "
                "Read the table and go on from its version.",
                param="version",
            )
        old = self._rows
        before = [(row.id, row.url, row.state) for row in old.values()]
        self._rows = {entry.id: self._row(entry, old.get(entry.id)) for entry in update.replicas}
        self._leaving += [row for row in old.values() if row is not self._rows.get(row.id) and row.num_requests]
        self.version = update.version if update.version is not None else self.version
        if self.ready():
            self._on_ready()
        return before != [(row.id, row.url, row.state) for row in self._rows.values()]

    @staticmethod
    def _row(entry: ReplicaEntry, known: Replica | None) -> Replica:
        if known is None or known.url != entry.url:
            return Replica(entry.id, entry.url, entry.state)
        known.state = entry.state
        return known

    @contextmanager
    def assigned(self, replica: Replica, keys: Sequence[bytes], num_prompt_tokens: int) -> Iterator[Assignment]:
        """Count one request at `replica` while the block runs, and remember that it computes these prefixes."""
        uncached = max(0, num_prompt_tokens - TOKENS_PER_BLOCK * replica.prefixes.match(keys))
        replica.prefixes.remember(keys)
        replica.num_requests += 1
        replica.prefill_tokens += uncached
        assignment = Assignment(replica, uncached)
        try:
            yield assignment
        finally:
            assignment.prefill_done()
            replica.num_requests -= 1
            if not replica.num_requests and replica in self._leaving:
                self._leaving.remove(replica)

    def put_aside(self, replica: Replica, until: float) -> None:
        """Prefer others until then: it did not take a request just now."""
        replica.aside_until = until

    def take_back(self, replica: Replica) -> None:
        """It has answered: whatever kept requests from it is over."""
        if replica.aside_until:
            replica.aside_until = 0.0
            self._on_ready()

    def status(self) -> ReplicaTableStatus:
        """The table as `GET /admin/replicas` shows it."""
        in_table = set(map(id, self._rows.values()))
        rows = tuple(
            ReplicaStatus(
                id=r.id,
                url=r.url,
                state=r.state,
                in_table=id(r) in in_table,
                in_flight=r.num_requests,
                prefill_tokens=r.prefill_tokens,
            )
            for r in self
        )
        return ReplicaTableStatus(replicas=rows, version=self.version)
