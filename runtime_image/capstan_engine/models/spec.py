"""What a model is: frozen facts, read from its `config.json` and `generation_config.json`.

Knows no tensor. The surprising idea: a family is only a way to read a config (`families`); the decoder never asks for
it.
"""

from dataclasses import dataclass
from pathlib import Path

from capstan_engine.models.config_file import Config
from capstan_engine.models.rope_spec import RopeSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One decoder-only transformer."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    max_positions: int
    """Longest sequence that the rotary embedding is meant for, its scaling included."""
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    """Sliding window of each layer; a query sees that many keys, itself included."""
    dtype: str
    """`float32` or `bfloat16`: what the checkpoint asks for."""
    eos_token_ids: tuple[int, ...]


def eos_token_ids(model_dir: Path, config: Config) -> tuple[int, ...]:
    """End-of-sequence ids of `generation_config.json`, which has the last word, and of `config.json`."""
    generation = model_dir / "generation_config.json"
    ids = Config.read(generation).token_ids("eos_token_id") if generation.exists() else ()
    return tuple(dict.fromkeys((*ids, *config.token_ids("eos_token_id"))))
