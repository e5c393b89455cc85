"""Tiny random checkpoints of every family and rope kind, written by transformers, and ways to run them.

Every parameter is random, norms and biases too: transformers starts them at one and zero, where a forgotten one would
not show.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from capstan_api.engine_args import Precision, Quantization
from capstan_engine.block_table import block_table
from capstan_engine.messages import SamplingParams
from capstan_engine.runner.load import build_runner
from capstan_engine.runner.runner import Runner
from capstan_engine.scheduler.step import ScheduledRequest, StepPlan

VOCAB_SIZE = 160
MAX_POSITIONS = 128


@dataclass(frozen=True)
class Case:
    """A configuration of transformers, and how long its test prompt must be to show what is special about it."""

    family: str
    config: dict[str, Any] = field(default_factory=dict)
    prompt_length: int = 24
    max_model_len: int = MAX_POSITIONS


def _rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **fields}}


_FACTORS = {"short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": [1.0 + i for i in range(8)]}
_LONGROPE = _rope("longrope", original_max_position_embeddings=32, factor=4.0, **_FACTORS)

CASES = {
    "llama": Case("Llama"),
    "llama-tied": Case("Llama", {"tie_word_embeddings": True}),
    "llama-biases": Case("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": Case("Llama", {"head_dim": 24}),
    "llama-no-groups": Case("Llama", {"num_key_value_heads": 4}),
    "llama-linear": Case("Llama", {**_rope("linear", factor=4.0), "max_position_embeddings": 32}),
    "llama-dynamic": Case("Llama", {**_rope("dynamic", factor=4.0), "max_position_embeddings": 32}),
    "llama-llama3": Case(
        "Llama",
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    "llama-yarn": Case("Llama", _rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama-yarn-untruncated": Case(
        "Llama",
        _rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            truncate=False,
            beta_fast=8.0,
            mscale=0.7,
            mscale_all_dim=0.4,
        ),
    ),
    "llama-longrope-long": Case("Llama", _LONGROPE, prompt_length=40),
    "llama-longrope-short": Case("Llama", _LONGROPE, prompt_length=20, max_model_len=32),
    "mistral": Case("Mistral", {"sliding_window": None}),
    "mistral-window": Case("Mistral", {"sliding_window": 9}),
    "qwen2": Case("Qwen2"),
    "qwen2-window": Case("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": Case("Qwen3", {"head_dim": 32}),
    "qwen3-layer-types": Case(
        "Qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def write_checkpoint(directory: Path, case: Case, *, max_shard_size: str = "1GB", seed: int = 0) -> Path:
    """A float32 checkpoint with random weights, saved by transformers itself."""
    config = getattr(transformers, f"{case.family}Config")(
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_POSITIONS,
            "eos_token_id": None,
            "bos_token_id": None,
            **case.config,
        }
    )
    model = getattr(transformers, f"{case.family}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise / 4 if "norm" in name else noise / 5)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def load_reference(directory: Path) -> Any:
    """The same checkpoint in transformers, float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def load_runner(
    directory: Path,
    *,
    precision: Precision = Precision.FLOAT32,
    quantization: Quantization = Quantization.NONE,
    max_model_len: int = MAX_POSITIONS,
    block_size: int = 4,
    kv_cache_bytes: int = 8 << 20,
    max_sequences: int = 0,
    device: str = "cpu",
) -> Runner:
    return build_runner(
        directory,
        precision=precision,
        quantization=quantization,
        kv_cache_bytes=kv_cache_bytes,
        block_size=block_size,
        max_model_len=max_model_len,
        num_threads=1,
        max_sequences=max_sequences,
        device=device,
    )


def random_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist()


def greedy(max_tokens: int = 1, **params: Any) -> SamplingParams:
    return SamplingParams(seed=0, max_tokens=max_tokens, temperature=0.0, **params)


def scheduled(
    token_ids: Sequence[int],
    *,
    start: int = 0,
    blocks: Sequence[int],
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    params: SamplingParams | None = None,
    request_id: str = "a",
    samples: bool = True,
) -> ScheduledRequest:
    return ScheduledRequest(
        request_id,
        list(token_ids),
        start,
        block_table(blocks),
        params or greedy(),
        samples,
        list(prompt) or list(token_ids),
        list(output),
    )


def generate(runner: Runner, prompt: Sequence[int], num_tokens: int, params: SamplingParams | None = None) -> list[int]:
    """Tokens of one request run alone: its prompt in one step, then one token a step."""
    output: list[int] = []
    start, new = 0, list(prompt)
    blocks = range(runner.num_blocks)
    while len(output) < num_tokens:
        request = scheduled(new, start=start, blocks=blocks, prompt=prompt, output=output, params=params)
        sampled = runner.execute(StepPlan((request,))).sampled["a"]
        start += len(new)
        new = [sampled.token_id]
        output.append(sampled.token_id)
    return output
