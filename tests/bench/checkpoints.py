"""The benches' checkpoints: random Llama-shaped bfloat16 weights with a tokenizer, written once; or the shipped model.

A tokenizer is there so that servers can be measured too. It is the shipped model's, and the ids beyond it are words of
their own, so that every token that a random model chooses has a text and nobody's first token goes unseen.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from results import BUILD

SHIPPED: Final = Path(__file__).parents[2] / "runtime_image" / "models" / "capstan-tiny"
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "125m": {
        "vocab_size": 32_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "1.1b": {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
"""What `LlamaConfig` is told; 8b is Llama 3's."""


def checkpoint(shape: str) -> Path:
    """The directory of a shape; `tiny` is the shipped model."""
    if shape == "tiny":
        return SHIPPED
    directory = BUILD / shape
    if not (directory / "model.safetensors").exists():
        _write_weights(directory, shape)
    if not (directory / "tokenizer.json").exists():
        _write_tokenizer(directory, SHAPES[shape]["vocab_size"])
    return directory


def _write_weights(directory: Path, shape: str) -> None:
    config = transformers.LlamaConfig(
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=None, **SHAPES[shape]
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02, generator=generator)
    # One file, which every peer's converter reads.
    model.save_pretrained(directory, max_shard_size="100GB")


def _write_tokenizer(directory: Path, vocab_size: int) -> None:
    tokenizer = json.loads((SHIPPED / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # No merge leads to these, so no text is ever read as one. The first character is a space among byte-level tokens.
    vocabulary.update({f"Ġx{number}": number for number in range(len(vocabulary), vocab_size)})
    (directory / "tokenizer_config.json").write_bytes((SHIPPED / "tokenizer_config.json").read_bytes())
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
