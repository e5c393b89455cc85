"""The load generator against a server that ends streams in every way: nothing bad may pass as completed."""

import asyncio
import itertools

import pytest

from capstan_cli import endpoint, generator
from capstan_cli.errors import InputError, Unreachable
from capstan_cli.measure import Result
from capstan_cli.traffic import Arrival


async def replay(fake, arrivals, **options):
    async with endpoint.session(timeout_s=options.pop("timeout_s", 10)) as client:
        target = await generator.connect(client, fake.base, **options)
        return await generator.replay(client, target, arrivals)


@pytest.mark.parametrize(
    ("how", "result", "detail"),
    [
        ("complete", Result.COMPLETED, ""),
        ("429", Result.REJECTED, "429 code_429"),
        ("503", Result.REJECTED, "503 code_503"),
        ("500", Result.FAILED, "500 code_500"),
        ("reset", Result.LOST, "ServerDisconnectedError"),
        ("drop", Result.LOST, "ClientPayloadError"),
        ("error event", Result.TRUNCATED, "replica_lost"),
        ("no finish", Result.TRUNCATED, "no finish reason"),
        ("no done", Result.TRUNCATED, "no [DONE]"),
        ("short", Result.TRUNCATED, "fewer tokens than asked for"),
    ],
)
async def test_each_way_of_ending_is_told_apart(fake, how, result, detail):
    fake.behaviour = lambda _: how
    (outcome,) = await replay(fake, [Arrival(0, 30, 5)])
    assert (outcome.result, outcome.detail) == (result, detail)


async def test_a_server_that_never_answers_loses_the_request(fake):
    fake.release.clear()
    (outcome,) = await replay(fake, [Arrival(0, 30, 5)], timeout_s=0.3)
    assert (outcome.result, outcome.detail) == (Result.LOST, "timeout")


async def test_arrivals_do_not_wait_for_answers(fake):
    fake.release.clear()
    async with endpoint.session(timeout_s=10) as client:
        target = await generator.connect(client, fake.base)
        run = asyncio.create_task(generator.replay(client, target, [Arrival(0, 10, 2)] * 40))
        await fake.until_open(40)
        fake.release.set()
        outcomes = await run
    assert all(o.result is Result.COMPLETED for o in outcomes)
    assert [o.index for o in outcomes] == list(range(40))


async def test_the_closed_loop_keeps_no_more_open_than_asked(fake):
    async with endpoint.session(timeout_s=10) as client:
        target = await generator.connect(client, fake.base)
        lengths = itertools.repeat(Arrival(0, 10, 3))
        outcomes = await generator.saturate(client, target, lengths, concurrency=4, duration_s=0.2)
    assert len(outcomes) > 4
    assert fake.most_open <= 4
    assert [o.index for o in outcomes] == list(range(len(outcomes)))


async def test_cancelling_a_replay_closes_its_requests(fake):
    fake.release.clear()
    async with endpoint.session(timeout_s=10) as client:
        target = await generator.connect(client, fake.base)
        run = asyncio.create_task(generator.replay(client, target, [Arrival(0, 10, 2)] * 5))
        await fake.until_open(5)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        fake.release.set()
        await fake.until_open(0)


@pytest.mark.parametrize("chat", [True, False])
async def test_prompts_have_exactly_the_token_counts_of_the_trace(fake, chat):
    wanted = [4, 5, 17, 64, 333, 2048]
    outcomes = await replay(fake, [Arrival(0, n, 1) for n in wanted], chat=chat)
    assert [o.prompt_tokens for o in outcomes] == wanted


def shared_words(a, b):
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a.split(), b.split(), strict=False)))


async def test_no_two_prompts_share_a_prefix_unless_asked(fake):
    await replay(fake, [Arrival(0, 200, 1)] * 60)
    prompts = [body["messages"][0]["content"] for body in fake.bodies]
    shared = max(shared_words(a, b) for a, b in itertools.combinations(prompts, 2))
    assert shared <= 4


async def test_a_shared_prefix_is_as_long_as_asked(fake):
    await replay(fake, [Arrival(0, 200, 1)] * 5, shared_prefix_tokens=100)
    prompts = [body["messages"][0]["content"] for body in fake.bodies]
    shared = {" ".join(p.split()[:100]) for p in prompts}
    assert len(shared) == 1
    assert len(set(prompts)) == 5


async def test_the_same_seed_asks_the_same_questions(fake):
    for _ in range(2):
        await replay(fake, [Arrival(0, 50, 1)] * 3, seed=7)
    contents = [body["messages"][0]["content"] for body in fake.bodies]
    assert sorted(contents[:3]) == sorted(contents[3:])


async def test_the_class_travels_in_its_header_and_the_replica_comes_back(fake):
    (outcome,) = await replay(fake, [Arrival(0, 10, 1, "batch")])
    assert fake.headers[0]["x-capstan-slo-class"] == "batch"
    assert outcome.replica == "r-0"
    assert outcome.slo_class == "batch"


async def test_a_request_asks_for_exactly_its_output_length(fake):
    await replay(fake, [Arrival(0, 10, 9)])
    (body,) = fake.bodies
    assert (body["max_tokens"], body["ignore_eos"], body["stream_options"]) == (9, True, {"include_usage": True})


async def test_a_request_longer_than_the_model_takes_is_refused_before_the_run(fake):
    async with endpoint.session(timeout_s=10) as client:
        with pytest.raises(InputError, match=r"4000 prompt and 200 output tokens.*--max-prompt"):
            await generator.connect(client, fake.base, longest=(4000, 200))


async def test_an_unknown_model_names_the_served_ones(fake):
    async with endpoint.session(timeout_s=10) as client:
        with pytest.raises(Unreachable, match="fake"):
            await generator.connect(client, fake.base, "other")


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000/v1/", "http://localhost:8000"),
        ("http://[::1]:80/v1", "http://[::1]:80"),
    ],
)
def test_an_address_may_be_written_with_or_without_v1(text, base):
    assert endpoint.base_url(text, allow_remote=False) == base


@pytest.mark.parametrize("text", ["http://example.org", "http://127.0.0.1.example.org", "http://0.0.0.0:80"])
def test_load_goes_to_another_machine_only_when_allowed(text):
    with pytest.raises(InputError, match="--allow-remote"):
        endpoint.base_url(text, allow_remote=False)
    assert endpoint.base_url(text, allow_remote=True) == text


@pytest.mark.parametrize("text", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:x", "http://127.0.0.1:99999"])
def test_a_malformed_address_is_an_input_error(text):
    with pytest.raises(InputError, match="is not an address"):
        endpoint.base_url(text, allow_remote=True)
