"""One replica behind its gateway: any OpenAI client is served, and edits to the resource cost no request."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from clients import Answer, client, told
from house import House, document

pytestmark = pytest.mark.slow

NAME = "served"
SCALING = {"minReplicas": 1, "maxReplicas": 1}
NUM_LOOPS = 4


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    started = House(document(NAME, scaling=SCALING))
    yield started
    started.close()


@asynccontextmanager
async def constant_load(endpoint: str) -> AsyncIterator[list[Answer]]:
    """Streams without a pause, finished at the end; gives every answer."""
    answers: list[Answer] = []
    numbers = itertools.count()
    going = True

    async with client(endpoint, NAME) as asking, asyncio.TaskGroup() as loops:

        async def loop() -> None:
            while going:
                answers.append(await asking.ask(next(numbers), 48))

        for _ in range(NUM_LOOPS):
            loops.create_task(loop())
        try:
            yield answers
        finally:
            going = False


async def test_an_unmodified_openai_client_is_served_through_the_gateway(house: House) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is a package?"}]
    async with openai.AsyncOpenAI(base_url=f"{await house.ready(1)}/v1", api_key="none", max_retries=0) as api:
        chat = await api.chat.completions.create(model=NAME, messages=messages, max_tokens=12)
        assert chat.model == NAME
        assert chat.usage is not None
        assert 1 <= chat.usage.completion_tokens <= 12
        assert chat.choices[0].finish_reason in ("stop", "length")

        stream = await api.chat.completions.create(
            model=NAME, messages=messages, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens <= 12

        alias = await api.completions.create(model=f"{NAME}-batch", prompt="The", max_tokens=2)
        assert alias.usage is not None

        assert {model.id async for model in api.models.list()} == {NAME, f"{NAME}-batch"}
        with pytest.raises(openai.NotFoundError) as missing:
            await api.completions.create(model="nobody", prompt="The")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            await api.completions.create(model=NAME, prompt="The", temperature=9)
        assert wrong.value.param == "temperature"


async def test_the_models_alias_puts_a_request_into_its_class(house: House) -> None:
    counter = "capstan_gateway_requests_total"
    async with client(await house.ready(1), f"{NAME}-batch") as asking:
        before = await asking.metric(counter, slo_class="batch")
        assert (await asking.ask(0, 4)).is_complete
        assert await asking.metric(counter, slo_class="batch") == before + 1


async def test_edits_under_load_cost_no_request(house: House) -> None:
    """A broken edit changes nothing, an edit of the scaling restarts nothing, one of the engine replaces it."""
    endpoint = await house.ready(1)
    pids = house.pids("engine")
    async with constant_load(endpoint) as answers:
        house.write(document(NAME, scaling={"minReplicas": "many"}))
        assert "spec.scaling.minReplicas" in await house.said("stays in force")

        generation = house.status()["observedGeneration"]
        idle = {"scaleToZeroAfterSeconds": 77}
        house.write(document(NAME, scaling=SCALING | {"idle": idle}))
        await house.until(lambda: house.status()["observedGeneration"] > generation, what="the edit is seen")
        assert house.pids("engine") == pids

        engine = document(NAME, scaling=SCALING)["spec"]["engine"] | {"prefixCaching": {"mode": "Disabled"}}
        house.write(document(NAME, scaling=SCALING, engine=engine))
        [old] = pids
        await house.until(lambda: old not in house.pids("engine") and len(house.pids("engine")) == 1, what="a rollout")
        await house.ready(1)
        num_before = len(answers)
        await house.until(lambda: len(answers) > num_before + NUM_LOOPS, what="the new one serves")
    assert house.pids("engine").keys() != pids.keys()
    assert all(answer.is_complete for answer in answers), told(a for a in answers if not a.is_complete)
    assert {answer.replica for answer in answers} == {old, *house.pids("engine")}


async def test_an_edit_of_the_slos_reaches_the_running_gateway_and_costs_no_request(house: House) -> None:
    endpoint = await house.ready(1)
    gateway, [old] = house.pids("gateway"), house.pids("engine")
    slos = document(NAME, scaling=SCALING)["spec"]["slos"]
    slos[0] |= {"name": "chat", "ttft": {"thresholdMilliseconds": 4321}}
    slos.append({"name": "bulk", "selector": {"modelAlias": f"{NAME}-bulk"}, "ttft": {"thresholdMilliseconds": 60000}})
    bucket = "capstan_gateway_time_to_first_token_seconds_bucket"
    async with constant_load(endpoint) as answers:
        await house.until(lambda: len(answers) >= NUM_LOOPS, what="streams")
        house.write(document(NAME, scaling=SCALING, slos=slos))
        # Engines count by class too, so they are rolled out; the door stays, and until then it sends the old one
        # requests of a class that only the door knows.
        await house.until(lambda: old not in house.pids("engine") and len(house.pids("engine")) == 1, what="a rollout")
        await house.ready(1)
        num_before = len(answers)
        await house.until(lambda: len(answers) > num_before + NUM_LOOPS, what="the new one serves")
    assert house.pids("gateway") == gateway
    assert all(answer.is_complete for answer in answers), told(a for a in answers if not a.is_complete)
    async with client(endpoint, f"{NAME}-bulk") as asking:
        assert await asking.metric(bucket, slo_class="chat", le="4.321") > 0
        assert (await asking.ask(0, 4)).is_complete
        assert await asking.metric("capstan_gateway_requests_total", slo_class="bulk") == 1


async def test_sigterm_finishes_what_was_accepted_and_leaves_nothing(house: House) -> None:
    async with client(await house.ready(1), NAME) as asking:
        begun = [asking.begin(number, 200, stream=number % 2 == 0) for number in range(6)]
        await asyncio.gather(*(answer.begun.wait() for answer, _ in begun if answer.stream))
        await house.stop()
        await asyncio.gather(*(task for _, task in begun))
    assert all(answer.is_complete for answer, _ in begun), told(answer for answer, _ in begun)
