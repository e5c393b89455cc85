"""Every family and rope kind computes what transformers computes, on tiny random checkpoints."""

import json
from pathlib import Path

import pytest
import torch

from capstan_api.engine_args import Precision
from capstan_engine.runner.runner import Runner
from capstan_engine.scheduler.step import StepPlan
from tiny_models import (
    CASES,
    Case,
    generate,
    greedy,
    load_reference,
    load_runner,
    random_prompt,
    scheduled,
    write_checkpoint,
)


def prompt_logprobs(runner: Runner, prompt: list[int], chunk_lengths: list[int]) -> torch.Tensor:
    """Log probabilities of all tokens `[positions - 1, V]`, the prompt computed in chunks of these lengths."""
    params = greedy(prompt_logprobs=runner.vocab_size)
    rows = []
    start = 0
    for length in chunk_lengths:
        chunk = prompt[start : start + length]
        request = scheduled(chunk, start=start, blocks=range(runner.num_blocks), prompt=prompt, params=params)
        for entry in runner.execute(StepPlan((request,))).prompt_logprobs.get("a", []):
            row = torch.empty(runner.vocab_size)
            row[list(entry.ids)] = torch.tensor(entry.logprobs)
            rows.append(row)
        start += length
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_log_probabilities_and_greedy_tokens_equal_those_of_transformers(case: Case, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, case)
    prompt = random_prompt(case.prompt_length)
    num_tokens = min(64, case.max_model_len - len(prompt))
    model = load_reference(directory)
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0, :-1], -1)
        tokens = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=num_tokens)
    runner = load_runner(directory, max_model_len=case.max_model_len)

    assert expected.std() > 0.5, "logits must differ enough for a comparison to mean something"
    for chunks in ([len(prompt)], [5, 1, len(prompt) - 6]):
        torch.testing.assert_close(prompt_logprobs(runner, prompt, chunks), expected, rtol=0, atol=1e-4)
    assert generate(runner, prompt, num_tokens) == tokens[0, len(prompt) :].tolist()


def test_rope_scaling_as_older_configs_spell_it_gives_the_same_model(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, CASES["llama-llama3"])
    prompt = random_prompt(24)
    expected = generate(load_runner(directory), prompt, 16)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = {"type": parameters.pop("rope_type"), **parameters}
    path.write_text(json.dumps(config))
    assert generate(load_runner(directory), prompt, 16) == expected
    config["rope_scaling"] = None
    path.write_text(json.dumps(config))
    assert generate(load_runner(directory), prompt, 16) != expected


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-window"])
def test_bfloat16_stays_close_to_float32(name: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, CASES[name])
    prompt = random_prompt(40)
    exact = prompt_logprobs(load_runner(directory), prompt, [40])
    rounded = prompt_logprobs(load_runner(directory, precision=Precision.BFLOAT16), prompt, [40])
    assert (exact - rounded).abs().mean() < 0.05 * exact.std()
    assert (exact - rounded).abs().max() > 0, "bfloat16 must really be used"


def test_long_prompts_of_many_tiles_equal_transformers(tmp_path: Path) -> None:
    case = Case(
        "Qwen3",
        {
            "head_dim": 16,
            "max_position_embeddings": 512,
            "use_sliding_window": True,
            "sliding_window": 70,
            "max_window_layers": 1,
        },
    )
    directory = write_checkpoint(tmp_path, case)
    prompt = random_prompt(333)
    with torch.inference_mode():
        expected = torch.log_softmax(load_reference(directory)(torch.tensor([prompt])).logits[0, :-1], -1)
    runner = load_runner(directory, max_model_len=512, block_size=16)
    for chunks in ([333], [150, 183], [100, 1, 200, 32]):
        torch.testing.assert_close(prompt_logprobs(runner, prompt, chunks), expected, rtol=0, atol=1e-4)
