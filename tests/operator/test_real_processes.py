"""The loop with the real engine and gateway: from a resource to an answer, and back to one after a crash."""

import asyncio
import os
import signal
from pathlib import Path

import aiohttp
import pytest
from local_world import until
from worlds import deployment

from capstan_operator.decide.feasibility import Pace, doubts
from capstan_operator.errors import ModelNotFound
from capstan_operator.reconcile import Reconciler, Turn
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.processes import ProcessesWorld
from capstan_operator.world.processes.checkpoints import checkpoint_directory

pytestmark = pytest.mark.slow
SETTINGS = OperatorSettings(turn_interval_s=0.3, first_restart_s=0.2)


async def num_tokens(url: str) -> int:
    """Tokens of a completion that the door was asked for 48 of."""
    body = {"model": "web", "prompt": "Once", "max_tokens": 48, "ignore_eos": True}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/completions", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return int(answer["usage"]["completion_tokens"])


async def test_a_resource_is_served_learnt_from_and_served_again_after_a_crash(tmp_path: Path) -> None:
    try:
        checkpoint_directory("bundled://capstan-tiny")
    except ModelNotFound as error:
        pytest.skip(str(error))
    of = deployment(model={"source": {"uri": "bundled://capstan-tiny"}, "maxModelLength": 512})
    world = ProcessesWorld(tmp_path, gateway_port=0, settings=SETTINGS)
    stop, turns = asyncio.Event(), list[Turn]()
    loop = asyncio.create_task(Reconciler(world, lambda: of, settings=SETTINGS).run(stop, turns.append))
    try:

        async def ready() -> bool:
            status = turns[-1].status if turns else None
            return status is not None and status.ready_replicas == 1

        await until(ready, 120)
        (gateway,) = await world.gateways()
        assert gateway.url is not None
        # What arrives before the table does is held, not refused.
        assert await asyncio.gather(*(num_tokens(gateway.url) for _ in range(8))) == [48] * 8

        async def learnt() -> bool:
            decision = turns[-1].decision
            return decision is not None and decision.memory.model.is_usable and decision.memory.lengths.is_known

        await until(learnt, 30)
        assert turns[-1].decision is not None
        assert turns[-1].decision.memory.lengths.output == pytest.approx(48, abs=0.1)
        assert turns[-1].decision.signals.complete
        # The law of memory, fed with the engine's own figures, says of its own resource what the engine said: it fits.
        told = turns[-1].decision.memory.told
        assert told is not None
        assert told.figures.max_positions == 8192
        assert doubts(of.spec, told.figures, Pace()) == ()

        (replica,) = await world.replicas()
        os.kill(world.pids()[replica.id], signal.SIGKILL)

        async def restarted() -> bool:
            (now,) = await world.replicas()
            return now.restarts == 1

        await until(restarted, 30)
        assert await num_tokens(gateway.url) == 48, "held while the engine starts again"
        assert [turn.error for turn in turns if turn.error] == []
    finally:
        stop.set()
        await loop
        await world.close(10)
    assert world.pids() == {}
