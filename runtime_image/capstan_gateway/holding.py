"""The waiting room: requests that have arrived while no replica can take them.

Knows neither replicas nor HTTP: somebody opens the door with `release`, and everybody inside goes on, higher priority
first and in order of arrival within one priority.

The surprising idea: the bound is for newcomers. A request that was accepted and then lost its replica comes back in
even when the room is full; to refuse it now would lose what was promised. Among newcomers it is the least urgent whom a
full room refuses, though it came first: else a crowd of them would shut everybody else out.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from itertools import count

_Ticket = tuple[int, float, int]
"""The smallest goes first: priority with its sign turned, arrival, number."""


class RoomFull(Exception):
    """As many requests wait as may, none of them less urgent."""


class WaitedTooLong(Exception):
    """The end of the request's own waiting time came first."""


class WaitingRoom:
    """Holds at most `max_held` newcomers. One event loop's property: not thread-safe."""

    def __init__(self, max_held: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_held = max_held
        """May be changed at any time; those inside stay."""
        self._clock = clock
        # False shows somebody out.
        self._waiting: dict[_Ticket, asyncio.Future[bool]] = {}
        self._newcomers: set[_Ticket] = set()
        self._order = count()
        self._occupied_since: float | None = None
        # Lengths of the last waits from the first arrival to the opening of the door: how long start-ups take.
        self._openings: deque[float] = deque(maxlen=5)

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(
        self, *, priority: int, arrival: float, until: float, recheck_at: float | None = None, accepted: bool = False
    ) -> None:
        """Return when the door opens, or at `recheck_at`. Times are the clock's.

        Raises RoomFull for a newcomer (not `accepted`) in a full room, at once or when a more urgent one takes its
        place, and WaitedTooLong at `until`.
        """
        if len(self._waiting) >= self.max_held and not accepted:
            self._make_room_for(priority)
        end = until if recheck_at is None else min(until, recheck_at)
        now = self._clock()
        if self._occupied_since is None:
            self._occupied_since = now
        ticket = (-priority, arrival, next(self._order))
        door = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        if not accepted:
            self._newcomers.add(ticket)
        try:
            async with asyncio.timeout(end - now):
                may_go_on = await door
            if not may_go_on:
                raise RoomFull
        except TimeoutError:
            if end == until:
                raise WaitedTooLong from None
        finally:
            del self._waiting[ticket]
            self._newcomers.discard(ticket)
            if not self._waiting:
                self._occupied_since = None

    def release(self) -> None:
        """Let everybody go on."""
        if not self._waiting:
            return
        if self._occupied_since is not None:
            self._openings.append(self._clock() - self._occupied_since)
            self._occupied_since = None
        for ticket in sorted(self._waiting):
            if not self._waiting[ticket].done():
                self._waiting[ticket].set_result(True)

    def _make_room_for(self, priority: int) -> None:
        """Show out the newcomer that would go last, if it is less urgent. Raises RoomFull when it is not."""
        last = max((ticket for ticket in self._newcomers if not self._waiting[ticket].done()), default=None)
        if last is None or -last[0] >= priority:
            raise RoomFull
        self._waiting[last].set_result(False)

    def retry_after_s(self, default: float) -> float:
        """When it is worth coming back: the longest of the recent waits for the door, less what has passed of this one.

        `default` (seconds) stands in until the door has opened once.
        """
        expected = max(self._openings, default=default)
        waited = 0.0 if self._occupied_since is None else self._clock() - self._occupied_since
        return max(1.0, expected - waited)
