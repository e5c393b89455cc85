"""A crowd at one real engine: processes, sockets and the shipped model, nothing in between."""

import asyncio
import json
import os
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from clients import client, told

from capstan_api import names

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[2] / "runtime_image" / "models" / "capstan-tiny"
NUM_STREAMS = 1000
NUM_DISCONNECTS = 200
TOKEN = "token"


@pytest.fixture
async def ports(tmp_path: Path) -> AsyncIterator[dict[str, int]]:
    """An engine of its own, not behind a gateway; ends with SIGTERM and exit code 0."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    args = {
        "model": str(MODEL),
        "served_model_names": ["crowded"],
        "max_model_len": 512,
        "envelope": {"min_sequences": 1, "max_sequences": 64, "min_batched_tokens": 64, "max_batched_tokens": 512},
        "kv_cache_bytes": 64 << 20,
        "max_queued_requests": NUM_STREAMS,
        "port": 0,
        "admin_port": 0,
    }
    config = tmp_path / "engine.json"
    config.write_text(json.dumps(args))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "capstan_engine", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, names.ENV_ADMIN_TOKEN: TOKEN},
    )
    try:
        assert process.stdout is not None
        said: dict[str, int] = json.loads(await process.stdout.readline())
        yield said
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def settled(ports: dict[str, int]) -> dict[str, int]:
    """The engine's state, once nothing is open there."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers, trust_env=False) as session:
        while True:
            async with session.get(f"http://127.0.0.1:{ports['admin_port']}/admin/state") as response:
                state: dict[str, int] = await response.json()
            if state["ready"] and not (state["open_requests"] or state["running"] or state["waiting"]):
                return state
            await asyncio.sleep(0.05)


async def test_a_thousand_streams_end_well_and_two_hundred_that_leave_hold_no_block(ports: dict[str, int]) -> None:
    async with asyncio.timeout(120), client(f"http://127.0.0.1:{ports['port']}", "crowded", 100) as asking:
        await settled(ports)
        answers = await asyncio.gather(*(asking.ask(number, 6) for number in range(NUM_STREAMS)))
        assert all(answer.is_complete for answer in answers), told(a for a in answers if not a.is_complete)

        leaving = [asking.begin(number, 400, stream=number % 4 != 0) for number in range(NUM_DISCONNECTS)]
        await asyncio.gather(*(answer.begun.wait() for answer, _ in leaving[1:40:4]))
        for _, task in leaving:
            task.cancel()
        await asyncio.wait([task for _, task in leaving])
        assert not any(answer.is_complete for answer, _ in leaving)
        state = await settled(ports)
    assert state["blocks_held"] == 0
