"""From a request's fields to the engine's `SamplingParams`: defaults of the checkpoint, bounds of the model, seeds.

The precedence is vLLM's: the request, then the checkpoint's `generation_config.json`, then neutral values. Knows the
model's numbers (`ModelFacts`) but neither its text nor HTTP.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from capstan_engine.messages import SamplingParams
from capstan_engine.server.errors import ApiError
from capstan_engine.server.requests import ChatBody, CompletionBody
from capstan_engine.text.tokenizer import read_json

_DEFAULTED: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class ModelFacts:
    """What the front end must know of the model. `defaults` are sampling values of the checkpoint."""

    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    defaults: dict[str, float] = field(default_factory=dict)
    default_max_tokens: int | None = None

    @classmethod
    def read(cls, model_dir: Path, tokenizer_eos: int | None, *, max_model_len: int, vocab_size: int) -> "ModelFacts":
        """From `generation_config.json`, else `config.json`, and the tokenizer: every id that ends a sequence."""
        generation = read_json(model_dir / "generation_config.json")
        declared = generation.get("eos_token_id", read_json(model_dir / "config.json").get("eos_token_id"))
        eos = {*_ids(declared), *_ids(tokenizer_eos)}
        limit = generation.get("max_new_tokens")
        return cls(
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            eos_token_ids=tuple(sorted(eos)),
            defaults={name: value for name in _DEFAULTED if isinstance(value := generation.get(name), int | float)},
            default_max_tokens=limit if isinstance(limit, int) and limit > 0 else None,
        )


def sampling_params(
    body: ChatBody | CompletionBody, facts: ModelFacts, *, num_prompt_tokens: int, seed: int, prompt_param: str
) -> SamplingParams:
    """Checked parameters of one sequence. Raises `ApiError` 400 naming the field that does not fit the model."""
    max_tokens = _max_tokens(body, facts, num_prompt_tokens, prompt_param)
    if (body.min_tokens or 0) > max_tokens:
        message = f"min_tokens ({body.min_tokens}) must not exceed max_tokens ({max_tokens})."
        raise ApiError.invalid("min_tokens", message)
    stop_ids = body.stop_token_ids or []
    _check_ids("stop_token_ids", stop_ids, facts)
    end_ids = () if body.ignore_eos else facts.eos_token_ids
    echoes = isinstance(body, CompletionBody) and body.echo
    return SamplingParams(
        seed=seed,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=_value(body.temperature, facts, "temperature", 1.0),
        top_k=max(0, int(_value(body.top_k, facts, "top_k", 0))),
        top_p=_value(body.top_p, facts, "top_p", 1.0),
        min_p=_value(body.min_p, facts, "min_p", 0.0),
        repetition_penalty=_value(body.repetition_penalty, facts, "repetition_penalty", 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body, facts),
        stop_token_ids=tuple(dict.fromkeys((*end_ids, *stop_ids))),
        logprobs=body.num_logprobs,
        prompt_logprobs=body.num_logprobs if echoes and body.num_logprobs is not None else body.prompt_logprobs,
    )


def check_prompt(token_ids: list[int], facts: ModelFacts, param: str) -> None:
    """Raises `ApiError` 400 for an empty prompt or an id outside the vocabulary."""
    if not token_ids:
        raise ApiError.invalid(param, f"'{param}' must contain at least one token.")
    _check_ids(param, token_ids, facts)


def child_seed(seed: int, index: int) -> int:
    """The seed of choice `index`, 0 to 2^63 - 1. Choice 0 has the request's own, so n = 1 and n > 1 begin alike."""
    if index == 0:
        return seed & (2**63 - 1)
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _max_tokens(body: ChatBody | CompletionBody, facts: ModelFacts, num_prompt_tokens: int, prompt_param: str) -> int:
    room = facts.max_model_len - num_prompt_tokens
    wanted = body.wanted_tokens
    if wanted is None:
        wanted = max(1, min(room, facts.default_max_tokens or room))
    # No output at all still takes one step: the prompt's logits come with the token that it would produce.
    wanted = max(1, wanted)
    if wanted > room:
        raise ApiError.invalid(
            prompt_param,
            f"This model's maximum context length is {facts.max_model_len} tokens (setting max_model_len). However, "
            f"you requested {num_prompt_tokens + wanted} tokens ({num_prompt_tokens} in the {prompt_param}, {wanted} "
            "in the completion). Please shorten the prompt or lower max_tokens.",
            code="context_length_exceeded",
        )
    return wanted


def _value(requested: float | None, facts: ModelFacts, name: str, neutral: float) -> float:
    return requested if requested is not None else facts.defaults.get(name, neutral)


def _logit_bias(body: ChatBody | CompletionBody, facts: ModelFacts) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise ApiError.invalid("logit_bias", "Keys of 'logit_bias' must be token ids.")
        bias[int(key)] = value
    _check_ids("logit_bias", bias, facts)
    return bias


def _check_ids(param: str, ids: Iterable[int], facts: ModelFacts) -> None:
    highest = max(ids, default=0)
    if highest >= facts.vocab_size:
        raise ApiError.invalid(
            param, f"'{param}' has token id {highest}; the vocabulary has {facts.vocab_size} tokens."
        )


def _ids(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value) if isinstance(value, list) else []
