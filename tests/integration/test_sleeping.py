"""From one replica to none and back, with clients at the door."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from clients import client
from house import House, document

pytestmark = pytest.mark.slow


async def test_an_idle_house_sleeps_and_a_held_request_wakes_it(build: Callable[[dict[str, Any]], House]) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 1, "idle": {"scaleToZeroAfterSeconds": 2}}
    house = build(document("sleeper", scaling=scaling))
    # Nobody asks, so it need not even finish loading.
    async with client(await house.ready(0), "sleeper") as asking:
        assert not house.pids("engine")

        impatient, leaving = asking.begin(1, 8, stream=True)
        patient = [asking.begin(number, 8, stream=number % 2 == 0) for number in range(2, 6)]
        # From here on somebody waits at the door, so the house is awake: who leaves, leaves a held request.
        await house.until(lambda: house.status()["desiredReplicas"] == 1, what="the house wakes up")
        leaving.cancel()
        await asyncio.wait([leaving])
        async with asyncio.timeout(60):
            await asyncio.gather(*(task for _, task in patient))
        assert all(answer.is_complete for answer, _ in patient), patient
        assert not impatient.num_tokens

        await house.ready(0)
        for gauge in ("capstan_gateway_requests_held", "capstan_gateway_requests_in_flight"):
            assert await asking.metric(gauge) == 0
    await house.stop()
