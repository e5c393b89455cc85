"""Which of several operators acts: a Lease that one of them holds and renews, and the fence before every write.

Clocks of different machines are never compared. A standby takes the lease over when it has itself seen it unchanged
for as long as the lease says; the holder counts from the moment at which it *began* its last renewal, and stops writing
a margin before anybody else may start. So an operator that was paused finds its time over when it wakes, and sends
nothing. The version that a lease was read with must still be the current one when it is written.

The algorithm is that of client-go's leaderelection; the fence and the margin are not in it.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from capstan_operator.errors import ApiConflict, ApiError, ApiNotFound, NotLeader
from capstan_operator.world.kubernetes.access import LEASES
from capstan_operator.world.kubernetes.api import KubernetesApi, Manifest

logger = logging.getLogger(__name__)

_NEVER: Final = -math.inf
OnChange = Callable[[bool], None]


def uninterrupted_s() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Leadership(Protocol):
    """Whether this operator is the one that acts."""

    @property
    def is_held(self) -> bool: ...

    async def check(self) -> None:
        """The fence: returns when a write may be sent now, raises `NotLeader` otherwise."""

    async def run(self, on_change: OnChange) -> None:
        """Until cancelled, try to have the lease; `on_change` is called when it is won or lost."""

    async def release(self) -> None:
        """Give it back, so that the next one need not wait. `run` must have ended."""

    @property
    def tried_at(self) -> float:
        """When `run` last came to try, by its own clock."""


@dataclass(frozen=True)
class Terms:
    """What is asked of a lease. Times are seconds."""

    name: str
    namespace: str
    identity: str
    duration_s: int = 15
    renew_s: float = 3.0
    margin_s: float = 5.0


def claim(live: Manifest | None, terms: Terms, unchanged_s: float, now: datetime) -> dict[str, Any] | None:
    """The Lease to be written to have it for another while; None when it is another's to keep.

    `unchanged_s` is for how long `live` has been seen as it is. Pure.
    """
    moment = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec: Mapping[str, Any] = (live or {}).get("spec") or {}
    holder, transitions = spec.get("holderIdentity") or "", int(spec.get("leaseTransitions") or 0)
    ours = holder == terms.identity
    if holder and not ours and unchanged_s < float(spec.get("leaseDurationSeconds") or 0):
        return None
    metadata = {"name": terms.name, "namespace": terms.namespace}
    if live is not None:
        # The whole metadata goes back: labels and annotations on it are other people's.
        metadata = {**live["metadata"]}
    return {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": metadata,
        "spec": {
            **spec,
            "holderIdentity": terms.identity,
            "leaseDurationSeconds": terms.duration_s,
            "acquireTime": spec.get("acquireTime", moment) if ours else moment,
            "renewTime": moment,
            "leaseTransitions": transitions if ours or live is None else transitions + 1,
        },
    }


class Lease:
    """One operator's side of the lease. `api` must be unfenced, and its own: others must not keep it waiting."""

    def __init__(
        self,
        api: KubernetesApi,
        terms: Terms,
        *,
        clock: Callable[[], float] = uninterrupted_s,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._terms = terms
        self._clock = clock
        self._wall = wall
        self._live: Manifest | None = None
        self._words: object = None
        self._unchanged_since = clock()
        self._until = _NEVER
        self.tried_at = clock()

    @property
    def is_held(self) -> bool:
        return self._clock() < self._until

    async def check(self) -> None:
        if not self.is_held:
            raise NotLeader(f"{self._terms.identity} does not hold the lease {self._terms.name}: nothing is written")

    async def run(self, on_change: OnChange) -> None:
        told = False
        while True:
            self.tried_at = self._clock()
            try:
                async with asyncio.timeout(self._terms.margin_s):
                    await self.attempt()
            except (ApiError, TimeoutError) as error:
                logger.warning("the lease cannot be read or renewed: %s", str(error) or "no answer in time")
            if self.is_held != told:
                told = self.is_held
                logger.info("%s %s the lease", self._terms.identity, "has won" if told else "has lost")
                on_change(told)
            # Apart from each other, so that two that started together do not meet for ever.
            pause_s = self._terms.renew_s * random.uniform(0.8, 1.0)  # noqa: S311 - nothing is guarded by it
            left_s = self._until - self._clock()
            # The end of what we hold must be noticed when it comes, however the API server fares.
            await asyncio.sleep(min(pause_s, left_s) if left_s > 0 else pause_s)

    async def attempt(self) -> None:
        """Look, and write if it is ours to write. Raises `ApiError`."""
        if self._live is None or not self.is_held:
            await self._look()
        unchanged_s = self._clock() - self._unchanged_since
        wanted = claim(self._live, self._terms, unchanged_s, datetime.fromtimestamp(self._wall(), UTC))
        if wanted is None:
            self._until = _NEVER
            return
        # Counted from before the request: when the answer comes is not when it was written.
        began = self._clock()
        try:
            answer = await (self._api.create if self._live is None else self._api.replace)(LEASES, wanted)
        except ApiConflict:
            # Somebody was faster. What we held before is still ours until its time is over, unless it was taken.
            await self._look()
            return
        self._see(answer)
        self._until = began + self._terms.duration_s - self._terms.margin_s

    async def release(self) -> None:
        if not self.is_held or self._live is None:
            return
        # First, so that no write of ours can follow.
        self._until = _NEVER
        spec = {**self._live["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(self._terms.margin_s):
                await self._api.replace(LEASES, {**self._live, "spec": spec})
        except (ApiError, TimeoutError) as error:
            logger.warning("the lease is not given back, it will end by itself: %s", str(error) or "no answer in time")

    async def _look(self) -> None:
        try:
            self._see(await self._api.get(LEASES, self._terms.namespace, self._terms.name))
        except ApiNotFound:
            self._live = None
        if self._live is None or self._live.get("spec", {}).get("holderIdentity") != self._terms.identity:
            self._until = _NEVER

    def _see(self, live: Manifest) -> None:
        words = live.get("spec")
        if words != self._words:
            self._words, self._unchanged_since = words, self._clock()
        self._live = live


class Alone:
    """Leadership without a lease, for an operator that is certain to be the only one."""

    def __init__(self, *, clock: Callable[[], float] = uninterrupted_s) -> None:
        self._clock = clock
        self.is_held = True

    @property
    def tried_at(self) -> float:
        return self._clock()

    async def check(self) -> None:
        return

    async def run(self, on_change: OnChange) -> None:
        on_change(True)
        await asyncio.Event().wait()

    async def release(self) -> None:
        return
