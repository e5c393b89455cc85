"""A replay begins when it can be served, and waits for the replicas to fall back."""

import asyncio

import pytest

from capstan_cli.errors import InputError
from capstan_cli.load import TraceLoad
from capstan_cli.measure import Result
from capstan_cli.replay import Replay


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("t,prompt,output\n0,20,2\n0.01,30,3\n0.02,40,4\n")
    return TraceLoad(path)


async def asked(fake, running):
    """Wait until the server has seen a request, or the replay has failed."""
    seen = asyncio.create_task(fake.asked.wait())
    await asyncio.wait([seen, running], return_when=asyncio.FIRST_COMPLETED)
    assert seen.done(), running.exception()


async def test_nothing_is_sent_before_a_replica_is_ready(trace, fake, at_second):
    said = []
    replay = Replay(trace, settle_s=5, say=said.append)
    running = asyncio.create_task(replay.run())
    replay.see(at_second(0, endpoint=None))
    replay.see(at_second(1, model="fake", endpoint=fake.base, replicas_ready=0))
    await asyncio.sleep(0)
    assert fake.bodies == []
    replay.see(at_second(2, model="fake", endpoint=fake.base))
    replayed = await running
    assert [o.result for o in replayed.outcomes] == [Result.COMPLETED] * 3
    assert "3 requests of t.csv" in " ".join(said)


async def test_it_ends_only_when_the_replicas_have_fallen_back(trace, fake, at_second):
    loaded = asyncio.Event()
    replay = Replay(trace, settle_s=30, say=lambda s: loaded.set() if "has ended" in s else None)
    replay.see(at_second(0, model="fake", endpoint=fake.base))
    running = asyncio.create_task(replay.run())
    # The second replica comes while the load runs, and goes after it.
    await asked(fake, running)
    replay.see(at_second(50, model="fake", endpoint=fake.base))
    await loaded.wait()
    replay.see(at_second(60, model="fake", endpoint=fake.base))
    done, _ = await asyncio.wait([running], timeout=0.05)
    assert not done
    replay.see(at_second(95, model="fake", endpoint=fake.base))
    assert len((await running).outcomes) == 3


async def test_it_does_not_wait_for_ever(trace, fake, at_second):
    said = []
    replay = Replay(trace, settle_s=0.05, say=said.append)
    replay.see(at_second(0, model="fake", endpoint=fake.base))
    running = asyncio.create_task(replay.run())
    await asked(fake, running)
    replay.see(at_second(50, model="fake", endpoint=fake.base))
    await running
    assert "did not fall back" in said[-1]


async def test_requests_that_the_model_cannot_take_end_the_replay_at_once(trace, fake, at_second):
    fake.max_model_len = 10
    replay = Replay(trace, settle_s=5, say=lambda _: None)
    replay.see(at_second(0, model="fake", endpoint=fake.base))
    with pytest.raises(InputError, match="--max-prompt"):
        await replay.run()
