"""A leadership in a thread of its own goes on whatever the loop beside it does, and ends when it is released."""

import asyncio
import threading
import time

import pytest

from capstan_operator.apart import Apart
from capstan_operator.errors import NotLeader
from capstan_operator.lease import OnChange


class Metronome:
    """A leadership that is won at once, counts its renewals and says in which thread it made them."""

    def __init__(self) -> None:
        self.renewals = 0
        self.threads = set[str]()
        self.is_held = False
        self.tried_at = 0.0
        self.released = threading.Event()
        self.ticked = threading.Event()

    async def check(self) -> None:
        if not self.is_held:
            raise NotLeader("not yet")

    async def run(self, on_change: OnChange) -> None:
        self.is_held = True
        on_change(True)
        while True:
            self.renewals += 1
            self.threads.add(threading.current_thread().name)
            self.ticked.set()
            await asyncio.sleep(0.001)

    async def release(self) -> None:
        self.is_held = False
        self.released.set()


async def nothing() -> None:
    return


async def test_renewals_go_on_while_the_loop_is_busy() -> None:
    inner, told = Metronome(), list[tuple[bool, str]]()
    apart = Apart(inner, nothing)
    with pytest.raises(NotLeader):
        await apart.check()
    running = asyncio.create_task(apart.run(lambda held: told.append((held, threading.current_thread().name))))
    while not told:  # noqa: ASYNC110 - another thread tells
        await asyncio.sleep(0.001)
    # Nothing is awaited here: this loop is as busy as a loop can be.
    before, until = inner.renewals, time.monotonic() + 10
    while inner.renewals < before + 3 and time.monotonic() < until:
        inner.ticked.clear()
        inner.ticked.wait(1)
    assert inner.renewals >= before + 3
    assert told == [(True, "MainThread")]
    assert inner.threads == {"lease"}
    await apart.check()
    running.cancel()
    await asyncio.wait([running])
    await apart.release()


async def test_its_release_is_the_inner_ones_and_ends_the_thread() -> None:
    inner, closed = Metronome(), list[str]()

    async def close() -> None:
        closed.append(threading.current_thread().name)

    apart = Apart(inner, close)
    running = asyncio.create_task(apart.run(lambda _: None))
    while not inner.is_held:  # noqa: ASYNC110 - another thread sets it
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait([running])
    await apart.release()
    assert inner.released.is_set()
    assert closed == ["lease"], "what was opened there is closed there"
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]
    assert not apart.is_held


async def test_one_that_never_ran_is_released_without_a_thread() -> None:
    inner = Metronome()
    await Apart(inner, nothing).release()
    assert not inner.released.is_set()


async def test_what_breaks_inside_breaks_whoever_waits() -> None:
    class Broken(Metronome):
        async def run(self, on_change: OnChange) -> None:
            raise RuntimeError("nobody thought of this")

    apart = Apart(Broken(), nothing)
    with pytest.raises(RuntimeError, match="nobody thought of this"):
        await apart.run(lambda _: None)
    await apart.release()
