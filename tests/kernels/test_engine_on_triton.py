"""The whole engine on the Triton backend: the tokens of plain torch, in float32, through model, cache and sampler."""

from pathlib import Path

import pytest

import tiny_models
from capstan_engine import kernels
from capstan_engine.kernels import reference, triton
from capstan_engine.kernels.triton.machine import INTERPRETED
from capstan_engine.messages import SamplingParams
from capstan_engine.runner.runner import Runner
from capstan_engine.scheduler.step import StepPlan

PARAMS = SamplingParams(
    seed=5, max_tokens=6, temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.2, presence_penalty=0.3
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With biases, norms of heads, and layers with and without a sliding window."""
    return tiny_models.write_checkpoint(tmp_path_factory.mktemp("model"), tiny_models.CASES["qwen3-layer-types"])


def runner_on(backend: kernels.Kernels, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(kernels, "choose", lambda device: backend)
    device = "cuda" if backend is triton and not INTERPRETED else "cpu"
    return tiny_models.load_runner(directory, device=device)


@pytest.mark.parametrize("params", [tiny_models.greedy(6), PARAMS], ids=["greedy", "drawn"])
def test_tokens_are_the_references(directory: Path, params: SamplingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tiny_models.random_prompt(21)
    plain = tiny_models.generate(runner_on(reference, directory, monkeypatch), prompt, 6, params)
    assert tiny_models.generate(runner_on(triton, directory, monkeypatch), prompt, 6, params) == plain


def test_requests_in_one_step_get_what_they_get_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {name: tiny_models.random_prompt(length, seed=length) for name, length in (("a", 9), ("b", 14), ("c", 3))}
    alone = {}
    for name, prompt in prompts.items():
        runner = runner_on(triton, directory, monkeypatch)
        alone[name] = tiny_models.generate(runner, prompt, 2)
    runner = runner_on(triton, directory, monkeypatch)
    blocks = {"a": range(4), "b": range(4, 8), "c": range(8, 12)}
    first = runner.execute(
        StepPlan(
            tuple(
                tiny_models.scheduled(prompts[name], blocks=blocks[name], prompt=prompts[name], request_id=name)
                for name in ("a", "b")
            )
        )
    )
    tokens = {name: [sampled.token_id] for name, sampled in first.sampled.items()}
    second = runner.execute(
        StepPlan(
            (
                *(
                    tiny_models.scheduled(
                        tokens[name],
                        start=len(prompts[name]),
                        blocks=blocks[name],
                        prompt=prompts[name],
                        output=tokens[name],
                        request_id=name,
                    )
                    for name in ("a", "b")
                ),
                tiny_models.scheduled(prompts["c"], blocks=blocks["c"], prompt=prompts["c"], request_id="c"),
            )
        )
    )
    for name, sampled in second.sampled.items():
        tokens.setdefault(name, []).append(sampled.token_id)
    assert tokens == {"a": alone["a"], "b": alone["b"], "c": alone["c"][:1]}
