"""Shipping a model: a directory in Hugging Face's layout, with its card.

This module knows files and their names; it does not train. Every file is written under another name and then renamed,
so that an engine which loads the directory meanwhile reads old or new files, never half of one.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save

from models.card import Run, card
from models.dataset import Dataset
from models.network import Llama, Shape
from models.tokenizer import BEGIN, CHAT_TEMPLATE, END, PAD, ROLES, token_id


def export(directory: Path, model: Llama, data: Dataset, run: Run) -> None:
    """Write `model` into `directory` as bfloat16 safetensors with its configuration, tokenizer, template and card."""
    directory.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    ids = {f"{name}_id": token_id(data.tokenizer, token) for name, token in special.items()}
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.named_parameters()}
    files: dict[str, bytes] = {
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "config.json": _json({**_config(model.shape), **ids}),
        "generation_config.json": _json({**ids, "do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        "tokenizer.json": data.tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": model.shape.max_positions,
                "clean_up_tokenization_spaces": False,
                **special,
                "chat_template": CHAT_TEMPLATE,
            }
        ),
        "special_tokens_map.json": _json({**special, "additional_special_tokens": list(ROLES.values())}),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "README.md": card(run, model, data).encode(),
    }
    for name, content in files.items():
        partial = directory / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, directory / name)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
