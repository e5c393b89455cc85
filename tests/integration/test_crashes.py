"""What clients and the fleet see when a process is killed or stands still in the middle of its work."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
from clients import Client, client, told
from house import STARTED_S, House, document

from conftest import FLEET

pytestmark = pytest.mark.slow

MAX_SEQUENCES = 8
NUM_STREAMS, NUM_WHOLE = 40, 20
NUM_TOKENS = 96


@pytest.fixture
async def asking(fleet: House) -> AsyncIterator[Client]:
    async with client(await fleet.ready(2), FLEET) as asking:
        yield asking


async def both_serve(fleet: House, asking: Client) -> bool:
    """Whether two replicas answer within the time that a start takes; the status may still be that of before.

    A quick one may well serve eight requests alone, but not always the same one.
    """
    await fleet.ready(2)
    served, number, until = set[str](), 1000, time.monotonic() + STARTED_S
    while len(served) < 2 and time.monotonic() < until:
        answers = await asyncio.gather(*(asking.ask(number + i, 8) for i in range(8)))
        assert all(answer.is_complete for answer in answers), told(answers)
        served |= {answer.replica for answer in answers}
        number += 8
    return len(served) == 2


@pytest.mark.parametrize("role", ["engine", "core"])
async def test_a_killed_engine_costs_only_the_streams_that_had_begun(fleet: House, asking: Client, role: str) -> None:
    pids = fleet.pids(role)
    victim = min(pids)
    retries = await asking.metric("capstan_gateway_retries_total")
    begun = [asking.begin(number, NUM_TOKENS, stream=number % 3 != 0) for number in range(NUM_STREAMS + NUM_WHOLE)]
    answers = [answer for answer, _ in begun]

    def streaming() -> bool:
        return any(a.stream and a.replica == victim and a.num_tokens and not a.done for a in answers)

    await fleet.until(streaming, what="a stream from the victim")
    if role == "engine":
        # Even one that cannot notice anything may not stay behind and keep the next life from beginning.
        fleet.kill(fleet.pids("core")[victim], signal.SIGSTOP)
    fleet.kill(pids[victim])
    async with asyncio.timeout(60):
        await asyncio.gather(*(task for _, task in begun))

    failed = [answer for answer in answers if not answer.is_complete]
    assert all(answer.is_honest_failure for answer in failed), told(failed)
    # Only what its batch held had begun, and what had not begun was given to the other.
    assert all(answer.stream and answer.replica == victim and answer.num_tokens for answer in failed), told(failed)
    assert 1 <= len(failed) <= MAX_SEQUENCES
    assert await asking.metric("capstan_gateway_retries_total") > retries

    await fleet.another(role, victim, than=pids[victim])
    assert await both_serve(fleet, asking)


async def test_a_killed_gateway_comes_back_at_its_address_and_leaves_no_work_behind(
    fleet: House, asking: Client
) -> None:
    engines, gateway = fleet.pids("engine"), fleet.pids("gateway")["gateway"]
    begun = [asking.begin(number, 400, stream=True) for number in range(6)]
    await asyncio.gather(*(answer.begun.wait() for answer, _ in begun))
    fleet.kill(gateway)
    async with asyncio.timeout(30):
        await asyncio.gather(*(task for _, task in begun))
    assert not any(answer.finish_reason or answer.done for answer, _ in begun), "a cut answer must look cut"
    await fleet.another("gateway", "gateway", than=gateway)
    # The connections of `asking` died with the old one; the address has not changed.
    await fleet.until(lambda: fleet.condition("Available").get("status") == "True", what="the gateway is back")
    assert await both_serve(fleet, asking)
    assert fleet.pids("engine") == engines, "engines outlive their gateway"


async def test_an_engine_that_stands_still_is_not_taken_for_idle(fleet: House, asking: Client) -> None:
    """The wish to go down to one replica waits until both are seen again."""
    assert await both_serve(fleet, asking)
    engines = fleet.pids("engine")
    stopped = max(engines)
    fleet.kill(engines[stopped], signal.SIGSTOP)
    try:
        window_s = 2
        down = {"scaleDown": {"stabilizationWindowSeconds": window_s}}
        stale = {"maxAgeSeconds": 2}
        scaling = {"minReplicas": 1, "maxReplicas": 2, "behavior": down, "staleMetrics": stale}
        fleet.write(document(FLEET, scaling=scaling))
        await fleet.until(lambda: fleet.condition("MetricsFresh").get("status") == "False", what="blindness is told")
        enough = time.monotonic() + 3 * window_s
        # From here on the gateway sends it nothing; what it was sent before waits for it.
        await fleet.until(lambda: fleet.status()["readyReplicas"] == 1, what="it takes no requests")
        answer = await asking.ask(3000, 8)
        assert answer.is_complete, "the other one serves"
        assert answer.replica != stopped
        await asyncio.sleep(enough - time.monotonic())
        status = fleet.status()
        assert (status["desiredReplicas"], status["replicas"], status["drainingReplicas"]) == (2, 2, 0)
    finally:
        # Whoever stands still for twenty seconds, as one may on a busy machine, is started again by its supervisor.
        if fleet.pids("engine").get(stopped) == engines[stopped]:
            fleet.kill(engines[stopped], signal.SIGCONT)
    await fleet.ready(1)
    assert (await asking.ask(3001, 8)).is_complete


async def test_at_the_end_the_house_is_left_clean(fleet: House) -> None:
    await fleet.stop()
