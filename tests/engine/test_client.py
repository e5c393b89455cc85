"""The client's contract, on the core as a thread and as a process: one suite for both."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from capstan_api.engine_args import EngineArgs
from capstan_api.limits import BatchLimits, Envelope
from capstan_engine.client import EngineClient, InProcessClient, ProcessClient
from capstan_engine.errors import EngineDead, ModelError, QueueFull, RequestError, RequestTooLarge
from capstan_engine.messages import FinishReason, Output, Submit, Update
from fakes import fake_engine, make_submit

FAKE_CORE = (sys.executable, str(Path(__file__).with_name("fake_core.py")))
TIMEOUT_S = 20

NewClient = Callable[[str], EngineClient]


def engine_args(model: str = "good") -> EngineArgs:
    return EngineArgs(
        model=Path("/models") / model,
        served_model_names=("fake",),
        max_model_len=512,
        block_size=4,
        max_queued_requests=4,
        envelope=Envelope(min_sequences=1, max_sequences=8, min_batched_tokens=8, max_batched_tokens=64),
    )


@pytest.fixture(params=["thread", "process"])
def new_client(request: pytest.FixtureRequest) -> NewClient:
    if request.param == "process":
        return lambda model="good": ProcessClient(engine_args(model), command=FAKE_CORE)
    return lambda model="good": InProcessClient(fake_engine(engine_args(model)))


@asynccontextmanager
async def started(client: EngineClient) -> AsyncIterator[EngineClient]:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await client.start()
            yield client
    finally:
        await client.close()


async def collect(client: EngineClient, submit: Submit) -> list[Output]:
    return [output async for output in client.generate(submit)]


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def updated(client: EngineClient, condition: Callable[[Update], bool]) -> Update:
    """The first update from now on that fulfils the condition."""
    found: asyncio.Future[Update] = asyncio.get_running_loop().create_future()

    def observe(update: Update) -> None:
        if not found.done() and condition(update):
            found.set_result(update)

    client.on_update.append(observe)
    try:
        return await found
    finally:
        client.on_update.remove(observe)


async def test_ready_states_the_engines_size(new_client: NewClient) -> None:
    client = new_client("good")
    try:
        ready = await client.start()
        assert (ready.block_size, ready.max_model_len, ready.num_blocks) == (4, 512, 256)
        assert client.state.blocks_total == 256
    finally:
        await client.close()


async def test_streams_one_output_per_token_and_ends_with_a_reason(new_client: NewClient) -> None:
    async with started(new_client("good")) as client:
        outputs = await collect(client, make_submit(max_tokens=5, arrival_time=time.monotonic()))
        assert [len(o.token_ids) for o in outputs] == [1] * 5
        assert [o.finish_reason for o in outputs] == [None] * 4 + [FinishReason.LENGTH]
        assert outputs[0].first_scheduled_time is not None
        assert client.num_open == 0


async def test_requests_run_together_and_each_gets_its_own_tokens(new_client: NewClient) -> None:
    async with started(new_client("good")) as client:
        submits = [make_submit(f"r{i}", [i, i + 1], max_tokens=10) for i in range(8)]
        together = await asyncio.gather(*(collect(client, s) for s in submits))
        alone = [await collect(client, make_submit(f"again{i}", [i, i + 1], max_tokens=10)) for i in range(8)]
        assert [tokens(o) for o in together] == [tokens(o) for o in alone]
        assert len({tuple(tokens(o)) for o in together}) == 8


async def test_a_stream_that_nobody_reads_delays_no_other(new_client: NewClient) -> None:
    async with (
        started(new_client("good")) as client,
        aclosing(client.generate(make_submit("slow", max_tokens=50))) as slow,
    ):
        first = await anext(slow)
        await collect(client, make_submit("quick", max_tokens=50))
        rest = [output async for output in slow]
        assert len(tokens([first, *rest])) == 50


async def test_closing_the_stream_early_aborts_the_request_and_frees_its_blocks(new_client: NewClient) -> None:
    async with started(new_client("slow")) as client:
        async with aclosing(client.generate(make_submit(max_tokens=400))) as stream:
            await anext(stream)
            assert client.num_open == 1
        assert client.num_open == 0
        update = await updated(client, lambda u: u.state.running == 0 and u.state.blocks_held == 0)
        assert update.state.steps < 400, "it ended by itself"


async def test_cancelling_the_consumer_aborts_the_request(new_client: NewClient) -> None:
    async with started(new_client("slow")) as client:
        consumer = asyncio.create_task(collect(client, make_submit(max_tokens=400)))
        await updated(client, lambda u: u.state.running == 1)
        consumer.cancel()
        await asyncio.gather(consumer, return_exceptions=True)
        update = await updated(client, lambda u: u.state.running == 0 and u.state.blocks_held == 0)
        assert update.state.steps < 400, "it ended by itself"
        assert client.num_open == 0


async def test_a_request_that_cannot_fit_is_refused_by_name_of_the_field(new_client: NewClient) -> None:
    async with started(new_client("good")) as client:
        with pytest.raises(RequestTooLarge, match="512") as too_large:
            await collect(client, make_submit(prompt=[1] * 600))
        assert too_large.value.param == "prompt"
        with pytest.raises(RequestError, match="from 0 to 96"):
            await collect(client, make_submit("r2", prompt=[97]))
        assert client.num_open == 0


async def test_a_full_queue_is_refused_with_the_time_to_retry(new_client: NewClient) -> None:
    async with started(new_client("good")) as client:
        client.set_limits(BatchLimits(max_sequences=1, max_batched_tokens=8))
        results = await asyncio.gather(
            *(collect(client, make_submit(f"r{i}", max_tokens=200)) for i in range(12)), return_exceptions=True
        )
        refused = [r for r in results if isinstance(r, QueueFull)]
        assert refused
        assert all(1 <= r.retry_after_seconds <= 60 for r in refused)
        assert all(len(tokens(r)) == 200 for r in results if not isinstance(r, BaseException))


async def test_who_makes_place_for_more_urgent_ones_is_told_so(new_client: NewClient) -> None:
    async with started(new_client("good")) as client:
        client.set_limits(BatchLimits(max_sequences=1, max_batched_tokens=8))
        crowd = [collect(client, make_submit(f"r{i}", max_tokens=200)) for i in range(12)]
        urgent = [collect(client, make_submit(f"u{i}", max_tokens=20, priority=1)) for i in range(3)]
        results = await asyncio.gather(*crowd, *urgent, return_exceptions=True)
        assert [len(tokens(r)) for r in results[12:] if not isinstance(r, BaseException)] == [20] * 3
        assert all(isinstance(r, QueueFull) or len(tokens(r)) == 200 for r in results[:12])
        assert client.num_open == 0


async def test_an_id_in_use_is_refused_and_the_first_stream_goes_on(new_client: NewClient) -> None:
    async with started(new_client("good")) as client, aclosing(client.generate(make_submit(max_tokens=20))) as stream:
        first = await anext(stream)
        with pytest.raises(RequestError, match="in use"):
            await collect(client, make_submit())
        assert len(tokens([first, *[output async for output in stream]])) == 20


async def test_limits_reach_the_core(new_client: NewClient) -> None:
    async with started(new_client("good")) as client:
        client.set_limits(BatchLimits(max_sequences=2, max_batched_tokens=16))
        update = await updated(client, lambda u: u.state.max_sequences == 2)
        assert update.state.max_batched_tokens == 16


async def test_an_idle_core_keeps_sending_heartbeats(new_client: NewClient) -> None:
    async with started(new_client("good")) as client:
        first = await updated(client, lambda _: True)
        second = await updated(client, lambda _: True)
        assert second.state.heartbeat > first.state.heartbeat
        assert client.last_heartbeat_age_s < TIMEOUT_S


async def test_a_failing_step_ends_every_request_and_the_client(new_client: NewClient) -> None:
    async with started(new_client("fails")) as client:
        results = await asyncio.gather(
            collect(client, make_submit("a")), collect(client, make_submit("b")), return_exceptions=True
        )
        assert [type(r) for r in results] == [EngineDead, EngineDead]
        assert "the device is gone" in str(results[0])
        with pytest.raises(EngineDead, match="the device is gone"):
            await collect(client, make_submit("c"))
        assert "the device is gone" in str(await client.died())


async def test_closing_fails_what_is_open_and_may_be_repeated(new_client: NewClient) -> None:
    client = new_client("slow")
    await client.start()
    stream = client.generate(make_submit(max_tokens=400))
    await anext(stream)
    await client.close()
    with pytest.raises(EngineDead, match="shut down"):
        async for _ in stream:
            pass
    await client.close()


async def test_a_failing_observer_fails_the_streams_and_does_not_hang_them(new_client: NewClient) -> None:
    async with started(new_client("good")) as client:

        def fail(_: Update) -> None:
            raise ValueError("no such label")

        client.on_update.append(fail)
        with pytest.raises(EngineDead, match="no such label"):
            await collect(client, make_submit(max_tokens=400))


async def test_a_model_that_cannot_be_loaded_is_a_model_error_without_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    client = ProcessClient(engine_args("broken"), command=FAKE_CORE)
    with pytest.raises(ModelError, match="hidden_size is missing"):
        await client.start()
    await client.close()
    assert "Traceback" not in capfd.readouterr().err


async def test_a_killed_core_fails_every_open_stream() -> None:
    client = ProcessClient(engine_args("slow"), command=FAKE_CORE)
    async with started(client):
        assert client.pid is not None
        stream = client.generate(make_submit(max_tokens=400))
        await anext(stream)
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineDead, match="killed by signal 9"):
            async for _ in stream:
                pass


async def test_a_core_that_cannot_be_started_says_so() -> None:
    client = ProcessClient(engine_args(), command=(sys.executable, "-c", "import sys; sys.exit(3)"))
    with pytest.raises(EngineDead, match="exit code 3"):
        await client.start()
    await client.close()


async def test_a_killed_front_end_leaves_no_files_of_a_running_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with started(ProcessClient(engine_args(), command=FAKE_CORE)):
        assert os.listdir(tmp_path) == []


async def test_signals_leave_the_core_to_its_front_end() -> None:
    client = ProcessClient(engine_args(), command=FAKE_CORE)
    async with started(client):
        assert client.pid is not None
        os.kill(client.pid, signal.SIGTERM)
        os.kill(client.pid, signal.SIGINT)
        assert len(tokens(await collect(client, make_submit(max_tokens=20)))) == 20
