"""One step at a time: sizes, isolation of requests, log probabilities of prompts."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from capstan_api.engine_args import Precision
from capstan_api.footprint import Demand
from capstan_engine.errors import ConfigurationError, UnsupportedModel
from capstan_engine.models.families import read_spec
from capstan_engine.quant.storage import STORAGES
from capstan_engine.runner import kv_cache
from capstan_engine.runner.memory import HABITS, figures
from capstan_engine.runner.runner import Runner
from capstan_engine.scheduler.step import StepPlan, StepResult
from tiny_models import CASES, generate, greedy, load_runner, random_prompt, scheduled, write_checkpoint

POISON = 7
"""A token whose embedding is NaN: whoever feeds it gets logits that are not finite."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_checkpoint(tmp_path_factory.mktemp("model"), CASES["llama"])
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"][POISON] = math.nan
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture
def runner(directory: Path) -> Runner:
    return load_runner(directory)


def healthy_prompt(length: int, seed: int = 0) -> list[int]:
    return [token if token != POISON else POISON + 1 for token in random_prompt(length, seed)]


def test_blocks_are_counted_from_bytes(directory: Path) -> None:
    spec = read_spec(directory)
    per_block = 2 * 3 * 2 * 16 * 4 * 4  # K and V, layers, KV heads, width, slots, bytes of float32
    demand = Demand(40 * per_block, block_size=4, max_model_len=100, max_batched_tokens=64, max_sequences=4)
    full, half = (figures(spec, STORAGES["None"], HABITS["cpu"], itemsize=itemsize) for itemsize in (4, 2))
    assert kv_cache.num_blocks(full, demand) == 40
    assert kv_cache.num_blocks(full, replace(demand, kv_cache_bytes=40 * per_block - 1)) == 39
    assert kv_cache.num_blocks(half, demand) == 80


def test_a_cache_too_small_for_one_request_names_numbers_and_remedy(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"hold 24 blocks.*needs 25; set kv_cache_bytes to at least 76800"):
        load_runner(directory, kv_cache_bytes=24 * 3072, max_model_len=100)


def test_more_positions_than_the_model_has_are_refused(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_model_len: 129 exceeds the 128 positions"):
        load_runner(directory, max_model_len=129)


def test_a_quantized_checkpoint_is_refused_when_loading(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, CASES["llama"])
    path = directory / "config.json"
    path.write_text(path.read_text().replace("{", '{"quantization_config": {"quant_method": "awq"},', 1))
    with pytest.raises(UnsupportedModel, match="'awq'"):
        load_runner(directory)


def test_precision_auto_takes_the_checkpoints_own(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, CASES["llama"])
    sizes = {p: load_runner(directory, precision=p, kv_cache_bytes=1 << 20).num_blocks for p in Precision}
    assert sizes[Precision.AUTO] == sizes[Precision.FLOAT32]
    assert sizes[Precision.BFLOAT16] == 2 * sizes[Precision.FLOAT32]


def test_an_empty_plan_computes_nothing(runner: Runner) -> None:
    assert runner.execute(StepPlan()) == StepResult()


def test_only_requests_that_sample_get_a_token(runner: Runner) -> None:
    plan = StepPlan(
        (
            scheduled(healthy_prompt(6), blocks=[0, 1], request_id="chunk", samples=False),
            scheduled(healthy_prompt(6), blocks=[2, 3], request_id="last"),
        )
    )
    assert runner.execute(plan).sampled.keys() == {"last"}


def test_a_request_whose_logits_are_not_finite_fails_alone(runner: Runner) -> None:
    prompt = healthy_prompt(10)
    (expected,) = generate(runner, prompt, 1)
    plan = StepPlan(
        (
            scheduled(prompt, blocks=[0, 1, 2], request_id="before"),
            scheduled([5, POISON, 5], blocks=[3], request_id="bad"),
            scheduled([POISON], blocks=[7], request_id="bad-decode"),
            scheduled(prompt, blocks=[4, 5, 6], request_id="after"),
        )
    )
    result = runner.execute(plan)
    assert result.errors == dict.fromkeys(("bad", "bad-decode"), "the model's logits are not finite")
    assert {name: s.token_id for name, s in result.sampled.items()} == {"before": expected, "after": expected}


def test_blocks_that_a_failed_request_leaves_behind_are_harmless(runner: Runner) -> None:
    prompt = healthy_prompt(5)
    expected = generate(runner, prompt, 12)
    for block in range(8):
        result = runner.execute(StepPlan((scheduled([POISON] * 4, blocks=[block]),)))
        assert result.errors
    assert generate(runner, prompt, 12) == expected


def test_prompt_logprobs_come_for_every_chunk_and_stop_where_the_prompt_ends(runner: Runner) -> None:
    prompt = healthy_prompt(11)
    params = greedy(prompt_logprobs=2, logprobs=1)
    entries = []
    for start, end in ((0, 4), (4, 5), (5, 11)):
        plan = StepPlan((scheduled(prompt[start:end], start=start, blocks=range(3), prompt=prompt, params=params),))
        entries += runner.execute(plan).prompt_logprobs["a"]
    assert [entry.ids[0] for entry in entries] == prompt[1:]
    assert all(len(entry.ids) == 3 for entry in entries)
    decode = scheduled([9], start=11, blocks=range(3), prompt=prompt, output=[9], params=params)
    result = runner.execute(StepPlan((decode,)))
    assert result.prompt_logprobs == {}
    logprobs = result.sampled["a"].logprobs
    assert logprobs is not None
    assert logprobs.ids == (result.sampled["a"].token_id,) * 2
    assert logprobs.logprobs[0] == logprobs.logprobs[1]


def test_long_prompts_have_their_logprobs_in_slices(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = healthy_prompt(60)
    plan = StepPlan((scheduled(prompt, blocks=range(15), params=greedy(prompt_logprobs=0)),))
    whole = runner.execute(plan).prompt_logprobs["a"]
    monkeypatch.setattr("capstan_engine.runner.scoring._SLICE", 7)
    sliced = runner.execute(plan).prompt_logprobs["a"]
    assert [entry.ids for entry in sliced] == [entry.ids for entry in whole]
    for a, b in zip(sliced, whole, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_warming_up_changes_no_answer(directory: Path) -> None:
    prompt = healthy_prompt(20)
    warm, cold = load_runner(directory), load_runner(directory)
    warm.warm_up()
    assert generate(warm, prompt, 10) == generate(cold, prompt, 10)
