"""A `ProcessesWorld` of fake processes with the patience of a test, and ways to wait for what it does."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from capstan_operator.settings import OperatorSettings
from capstan_operator.world.processes import ProcessesWorld

FAKE = (sys.executable, str(Path(__file__).with_name("fake_process.py")))
SETTINGS = OperatorSettings(
    turn_interval_s=0.05,
    probe_interval_s=0.02,
    ready_probe_interval_s=0.05,
    liveness_timeout_s=0.5,
    first_restart_s=0.05,
    longest_restart_s=0.4,
    stable_s=60,
    kill_after_s=0.5,
)


def fake_world(run_dir: Path, settings: OperatorSettings = SETTINGS) -> ProcessesWorld:
    return ProcessesWorld(
        run_dir,
        gateway_port=0,
        settings=settings,
        engine_command=(*FAKE, "engine"),
        gateway_command=(*FAKE, "gateway"),
        model_directory=lambda _: run_dir,
    )


@asynccontextmanager
async def running_world(run_dir: Path, settings: OperatorSettings = SETTINGS) -> AsyncIterator[ProcessesWorld]:
    world = fake_world(run_dir, settings)
    try:
        yield world
    finally:
        world.kill()
        await world.close()


async def until(holds: Callable[[], Awaitable[bool]], within_s: float = 20) -> None:
    """Wait for a condition that only polling can see; fails the test when it does not come true."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110 - processes give no event to wait for
            await asyncio.sleep(0.01)


async def tell(url: str | None, what: str) -> None:
    """Have a fake process do something to itself; dying while answering is fine."""
    async with aiohttp.ClientSession() as session:
        try:
            await session.post(f"{url}/test/{what}")
        except aiohttp.ClientError:
            assert what == "die"
