"""However and whenever `capstan up` ends, nothing of it is left: no process, no listener, no temporary file."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest
from clients import client
from house import House, document

pytestmark = pytest.mark.slow

ONE = document("one", scaling={"minReplicas": 1, "maxReplicas": 1})
Build = Callable[[dict[str, Any]], House]


async def test_a_killed_house_leaves_nothing_not_even_with_a_core_that_stands_still(build: Build) -> None:
    house = build(ONE)
    async with client(await house.ready(1), "one") as asking:
        begun = [asking.begin(number, 400, stream=True) for number in range(4)]
        await asyncio.gather(*(answer.begun.wait() for answer, _ in begun))
        [core] = house.pids("core").values()
        house.kill(core, signal.SIGSTOP)
        house.kill(house.process.pid)
        await house.has_left_nothing()
        async with asyncio.timeout(10):
            await asyncio.gather(*(task for _, task in begun))
    assert not any(answer.is_complete for answer, _ in begun)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_house_that_ends_while_its_engine_loads_leaves_nothing(build: Build, number: signal.Signals) -> None:
    house = build(ONE)
    await house.until(lambda: house.pids("core"), what="a core that loads")
    if number is signal.SIGKILL:
        house.kill(house.process.pid)
        await house.has_left_nothing()
    else:
        await house.stop(number)
        assert not any("Traceback" in line for line in house.lines)
