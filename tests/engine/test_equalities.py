"""What a request gets depends on the request alone: through the real scheduler, engine and model, in float32.

The strongest tests of the engine: batching, chunking, caching, preemption and overlap may change when a token is
computed, never which one it is.
"""

import itertools
from collections.abc import Sequence

import pytest

from capstan_api.limits import BatchLimits
from capstan_engine.engine import Engine
from capstan_engine.messages import FinishReason, SamplingParams, Submit
from capstan_engine.runner.runner import Runner
from capstan_engine.scheduler.scheduler import Scheduler
from tiny_models import CASES, load_runner, random_prompt, write_checkpoint

LENGTHS = (3, 70, 17, 33, 8, 50)
MAX_TOKENS = 20
BLOCK_SIZE = 4
NAMES = ("llama-yarn", "qwen3-layer-types", "mistral-window")


@pytest.fixture(scope="module", params=NAMES)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    directory = write_checkpoint(tmp_path_factory.mktemp("model"), CASES[request.param])
    return load_runner(directory, block_size=BLOCK_SIZE)


@pytest.fixture(params=[False, True], ids=["in turn", "overlapping"])
def overlap(request: pytest.FixtureRequest) -> bool:
    """Whether a step is launched before the tokens of the last one are known."""
    return bool(request.param)


def new_engine(
    runner: Runner,
    *,
    max_sequences: int = 8,
    max_batched_tokens: int = 512,
    num_blocks: int | None = None,
    prefix_caching: bool = True,
    overlap: bool = False,
) -> Engine:
    scheduler = Scheduler(
        num_blocks=num_blocks or runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=128,
        limits=BatchLimits(max_sequences=max_sequences, max_batched_tokens=max_batched_tokens),
        max_queued_requests=64,
        prefix_caching=prefix_caching,
    )
    ticks = itertools.count()
    return Engine(scheduler, runner, overlap=overlap, clock=lambda: float(next(ticks)))


def run(engine: Engine, submits: Sequence[Submit]) -> dict[str, list[int]]:
    """Tokens by request id; every request must end by its length."""
    tokens: dict[str, list[int]] = {submit.request_id: [] for submit in submits}
    for submit in submits:
        engine.submit(submit)
    while engine.has_work:
        for output in engine.step().outputs:
            tokens[output.request_id] += output.token_ids
            assert output.finish_reason in (None, FinishReason.LENGTH), output.error
    return tokens


def params(index: int) -> SamplingParams:
    """Every second request is greedy; the others use some of everything."""
    if index % 2 == 0:
        return SamplingParams(seed=index, max_tokens=MAX_TOKENS, temperature=0.0)
    return SamplingParams(
        seed=index,
        max_tokens=MAX_TOKENS,
        temperature=0.9,
        top_k=(0, 40)[index % 4 == 1],
        top_p=0.95,
        repetition_penalty=1.1,
        presence_penalty=0.2,
    )


def requests() -> list[Submit]:
    return [
        Submit(request_id=f"{i}", prompt_token_ids=random_prompt(length, seed=i), params=params(i), arrival_time=0.0)
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def alone(runner: Runner) -> dict[str, list[int]]:
    """Each request in an engine of its own, its prompt whole, nothing cached."""
    return {s.request_id: run(new_engine(runner, prefix_caching=False), [s])[s.request_id] for s in requests()}


def test_batched_equals_alone(runner: Runner, alone: dict[str, list[int]], overlap: bool) -> None:
    assert all(len(tokens) == MAX_TOKENS for tokens in alone.values())
    assert run(new_engine(runner, overlap=overlap), requests()) == alone


@pytest.mark.parametrize("max_batched_tokens", [8, 9, 31])
def test_chunked_equals_whole(
    runner: Runner, alone: dict[str, list[int]], max_batched_tokens: int, overlap: bool
) -> None:
    assert run(new_engine(runner, max_batched_tokens=max_batched_tokens, overlap=overlap), requests()) == alone


def test_cached_equals_uncached(runner: Runner, alone: dict[str, list[int]], overlap: bool) -> None:
    engine = new_engine(runner, overlap=overlap)
    run(engine, requests())
    before = engine.state().prefix_hits
    assert run(engine, requests()) == alone
    assert engine.state().prefix_hits > before


def test_preempted_equals_undisturbed(runner: Runner, alone: dict[str, list[int]], overlap: bool) -> None:
    engine = new_engine(runner, num_blocks=36, overlap=overlap)
    assert run(engine, requests()) == alone
    assert engine.state().preemptions > 0


def test_a_seed_gives_the_same_tokens_in_any_company(runner: Runner) -> None:
    one = Submit(
        request_id="seeded",
        prompt_token_ids=random_prompt(12, seed=99),
        arrival_time=0.0,
        params=SamplingParams(seed=1234, max_tokens=MAX_TOKENS, temperature=1.2, min_p=0.01),
    )
    expected = run(new_engine(runner), [one])["seeded"]
    assert run(new_engine(runner), [*requests(), one])["seeded"] == expected
    assert run(new_engine(runner), [one, *requests()[3:]])["seeded"] == expected
    other = Submit(
        request_id="seeded",
        prompt_token_ids=one.prompt_token_ids,
        arrival_time=0.0,
        params=SamplingParams(seed=1235, max_tokens=MAX_TOKENS, temperature=1.2, min_p=0.01),
    )
    assert run(new_engine(runner), [other])["seeded"] != expected
