"""Names and shapes of a model's parameters, from its facts alone: for the loader, and for planners without a tensor."""

from typing import NamedTuple

from capstan_engine.models.spec import ModelSpec
from capstan_engine.quant.storage import LinearSpec

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head"


class LayerLinears(NamedTuple):
    """The linear layers of one decoder layer."""

    q: LinearSpec
    k: LinearSpec
    v: LinearSpec
    output: LinearSpec
    gate: LinearSpec
    up: LinearSpec
    down: LinearSpec


def layer_linears(spec: ModelSpec, index: int) -> LayerLinears:
    """Those of layer `index`."""
    attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return LayerLinears(
        q=LinearSpec(f"{attention}.q_proj", queries, hidden, spec.qkv_bias),
        k=LinearSpec(f"{attention}.k_proj", keys, hidden, spec.qkv_bias),
        v=LinearSpec(f"{attention}.v_proj", keys, hidden, spec.qkv_bias),
        output=LinearSpec(f"{attention}.o_proj", hidden, queries, spec.output_bias),
        gate=LinearSpec(f"{mlp}.gate_proj", inner, hidden, spec.mlp_bias),
        up=LinearSpec(f"{mlp}.up_proj", inner, hidden, spec.mlp_bias),
        down=LinearSpec(f"{mlp}.down_proj", hidden, inner, spec.mlp_bias),
    )


def head(spec: ModelSpec) -> LinearSpec:
    """The output head. A tied one has no tensor of its own in the checkpoint."""
    return LinearSpec(HEAD, spec.vocab_size, spec.hidden_size)


def vectors_and_embedding(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every parameter that belongs to no linear layer."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, spec.hidden_size), NORM: (spec.hidden_size,)}
    for index in range(spec.num_layers):
        prefix = f"model.layers.{index}"
        shapes[f"{prefix}.input_layernorm.weight"] = (spec.hidden_size,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (spec.hidden_size,)
        if spec.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (spec.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (spec.head_dim,)
    return shapes
