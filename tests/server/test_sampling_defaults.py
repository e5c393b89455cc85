"""Sampling values: the request's, else the checkpoint's, else neutral; and seeds that belong to their choice."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_engine.messages import SamplingParams
from capstan_engine.server.requests import ChatBody, CompletionBody
from capstan_engine.server.sampling import ModelFacts, child_seed, sampling_params

MESSAGES = [{"role": "user", "content": "x"}]


def facts(directory: Path, generation: dict[str, Any] | None = None, *, tokenizer_eos: int | None = 2) -> ModelFacts:
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return ModelFacts.read(directory, tokenizer_eos, max_model_len=100, vocab_size=50)


def params(of: ModelFacts, **fields: Any) -> SamplingParams:
    body = ChatBody.model_validate({"messages": MESSAGES} | fields)
    return sampling_params(body, of, num_prompt_tokens=10, seed=1, prompt_param="messages")


def test_neutral_values_without_any_wish(tmp_path: Path) -> None:
    found = params(facts(tmp_path))
    assert (found.temperature, found.top_p, found.top_k, found.min_p, found.repetition_penalty) == (1, 1, 0, 0, 1)
    assert found.max_tokens == 90


def test_the_checkpoint_s_values_and_the_request_s_before_them(tmp_path: Path) -> None:
    of = facts(tmp_path, {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True, "max_new_tokens": 30})
    assert (params(of).temperature, params(of).top_p, params(of).top_k, params(of).max_tokens) == (0.6, 0.95, 20, 30)
    asked = params(of, temperature=0, top_k=-1, max_tokens=60)
    assert (asked.temperature, asked.top_p, asked.top_k, asked.max_tokens) == (0, 0.95, 0, 60)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, (2, 7)), ({"eos_token_id": 5}, (2, 5)), ({"eos_token_id": [3, 4]}, (2, 3, 4)), ({}, (2, 7))],
)
def test_every_named_end_of_sequence_ends_it(
    tmp_path: Path, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    of = facts(tmp_path, generation)
    assert of.eos_token_ids == expected
    assert params(of, stop_token_ids=[9, 2]).stop_token_ids == (*expected, 9)
    assert params(of, stop_token_ids=[9], ignore_eos=True).stop_token_ids == (9,)


def test_completions_default_to_sixteen_tokens_and_null_to_the_context(tmp_path: Path) -> None:
    of = facts(tmp_path)
    lengths = [
        sampling_params(
            CompletionBody.model_validate({"prompt": "x"} | fields),
            of,
            num_prompt_tokens=10,
            seed=1,
            prompt_param="prompt",
        ).max_tokens
        for fields in ({}, {"max_tokens": None}, {"max_tokens": 0})
    ]
    assert lengths == [16, 90, 1]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 15), st.integers(0, 15))
def test_seeds_are_reproducible_distinct_and_in_range(seed: int, one: int, other: int) -> None:
    assert 0 <= child_seed(seed, one) < 2**63
    assert child_seed(seed, one) == child_seed(seed, one)
    assert (child_seed(seed, one) == child_seed(seed, other)) == (one == other)
