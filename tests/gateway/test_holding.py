"""The waiting room by itself."""

import asyncio

import pytest

from capstan_gateway.holding import RoomFull, WaitedTooLong, WaitingRoom

FAR = 1e9


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def inside(room, count):
    # The room tells nobody who enters; giving the loop a turn is enough.
    while len(room) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_the_door_lets_out_by_priority_and_then_by_arrival():
    room, order = WaitingRoom(10), []

    async def guest(name, priority, arrival):
        await room.wait(priority=priority, arrival=arrival, until=FAR)
        order.append(name)

    guests = [("late", 0, 3.0), ("urgent-late", 5, 2.0), ("early", 0, 1.0), ("urgent", 5, 0.0)]
    async with asyncio.TaskGroup() as group:
        for guest_args in guests:
            group.create_task(guest(*guest_args))
        await inside(room, len(guests))
        room.release()
    assert order == ["urgent", "urgent-late", "early", "late"]


async def test_a_full_room_refuses_newcomers_and_takes_back_the_accepted():
    room = WaitingRoom(0)
    with pytest.raises(RoomFull):
        await room.wait(priority=0, arrival=0.0, until=FAR)
    returning = asyncio.create_task(room.wait(priority=0, arrival=0.0, until=FAR, accepted=True))
    await inside(room, 1)
    room.release()
    await returning


async def test_waiting_ends_at_its_time_and_leaves_no_place_taken():
    room = WaitingRoom(1, clock=Clock())
    with pytest.raises(WaitedTooLong):
        await room.wait(priority=0, arrival=0.0, until=0.01)
    assert len(room) == 0


async def test_a_recheck_returns_without_the_door():
    room = WaitingRoom(1, clock=Clock())
    await room.wait(priority=0, arrival=0.0, until=FAR, recheck_at=0.001)
    assert len(room) == 0


async def test_a_cancelled_guest_leaves():
    room = WaitingRoom(1)
    guest = asyncio.create_task(room.wait(priority=0, arrival=0.0, until=FAR))
    await inside(room, 1)
    guest.cancel()
    with pytest.raises(asyncio.CancelledError):
        await guest
    assert len(room) == 0


async def test_retry_after_is_learnt_from_how_long_the_door_took_before():
    clock = Clock()
    room = WaitingRoom(5, clock=clock)
    assert room.retry_after_s(120) == 120

    async def wait_once(seconds):
        guest = asyncio.create_task(room.wait(priority=0, arrival=clock.now, until=FAR))
        await inside(room, 1)
        clock.now += seconds
        room.release()
        await guest

    await wait_once(8.0)
    assert room.retry_after_s(120) == 8.0
    guest = asyncio.create_task(room.wait(priority=0, arrival=clock.now, until=FAR))
    await inside(room, 1)
    clock.now += 5.0
    assert room.retry_after_s(120) == 3.0
    clock.now += 50.0
    assert room.retry_after_s(120) == 1.0
    room.release()
    await guest
