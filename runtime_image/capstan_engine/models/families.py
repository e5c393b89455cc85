"""Model families: how each one's `config.json` is to be read.

A family is a function that states what is special about it; `_base` reads what all share. Code that a checkpoint brings
along (`auto_map`) is ignored: nothing from a model directory is ever run.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from capstan_engine.errors import ModelError, UnsupportedModel
from capstan_engine.models.config_file import Config
from capstan_engine.models.rope_spec import read_rope
from capstan_engine.models.spec import ModelSpec, eos_token_ids


def read_spec(model_dir: Path) -> ModelSpec:
    """The facts of the model in `model_dir`. Raises `ModelError`, `UnsupportedModel`."""
    if not model_dir.is_dir():
        raise ModelError(f"{model_dir}: no such directory")
    config = Config.read(model_dir / "config.json")
    architectures = config.fields.get("architectures") or []
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    family = _FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModel(
            f"{config.path}: architecture {name or 'none'} is not supported; there are {', '.join(_FAMILIES)}"
        )
    spec = replace(family(config), eos_token_ids=eos_token_ids(model_dir, config))
    if spec.num_heads % spec.num_kv_heads:
        raise ModelError(f"{config.path}: num_attention_heads must be a multiple of num_key_value_heads")
    if spec.head_dim % 2 or spec.head_dim < 4:
        raise ModelError(f"{config.path}: head_dim must be even and at least 4, not {spec.head_dim}")
    return spec


def _llama(config: Config) -> ModelSpec:
    """Llama 1 to 3; biases are two switches, each for a whole block."""
    attention_bias = config.get("attention_bias", bool, False)
    return replace(
        _base(config, "llama"),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=config.get("mlp_bias", bool, False),
    )


def _mistral(config: Config) -> ModelSpec:
    """All layers slide, or none: its class has never read `layer_types`."""
    spec = _base(config, "mistral")
    window = config.positive("sliding_window") if config.fields.get("sliding_window") is not None else None
    return replace(spec, windows=(window,) * spec.num_layers)


def _qwen2(config: Config) -> ModelSpec:
    """Always a bias on q, k and v; the upper layers may slide."""
    spec = _base(config, "qwen2")
    return replace(spec, qkv_bias=True, windows=_qwen_windows(config, spec.num_layers))


def _qwen3(config: Config) -> ModelSpec:
    """A norm on each query and key head, and a head width of its own."""
    spec = _base(config, "qwen3", default_head_dim=128)
    bias = config.get("attention_bias", bool, False)
    windows = _qwen_windows(config, spec.num_layers)
    return replace(spec, qk_norm=True, qkv_bias=bias, output_bias=bias, windows=windows)


_FAMILIES: dict[str, Callable[[Config], ModelSpec]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
}


def _base(config: Config, family: str, default_head_dim: int | None = None) -> ModelSpec:
    activation = config.get("hidden_act", str, "silu")
    if activation != "silu":
        raise UnsupportedModel(f"{config.path}: hidden_act {activation!r} is not supported; only silu is")
    hidden_size, num_heads = config.positive("hidden_size"), config.positive("num_attention_heads")
    num_layers = config.positive("num_hidden_layers")
    head_dim = config.positive("head_dim", default_head_dim or hidden_size // num_heads)
    rope = read_rope(config, head_dim)
    max_positions = config.positive("max_position_embeddings", 2048)
    # These two kinds state the trained length; for the others max_position_embeddings is the extended one already.
    if rope.kind in ("linear", "dynamic"):
        max_positions = int(max_positions * rope.factor)
    return ModelSpec(
        family=family,
        vocab_size=config.positive("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.positive("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=config.positive("num_key_value_heads", num_heads),
        head_dim=head_dim,
        norm_eps=config.get("rms_norm_eps", float, 1e-6),
        rope=rope,
        max_positions=max_positions,
        tie_word_embeddings=config.get("tie_word_embeddings", bool, False),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None,) * num_layers,
        dtype=config.dtype(),
        eos_token_ids=(),
    )


def _qwen_windows(config: Config, num_layers: int) -> tuple[int | None, ...]:
    """`layer_types` where present; otherwise layers from `max_window_layers` on slide, if sliding is switched on."""
    if not config.get("use_sliding_window", bool, False) or config.fields.get("sliding_window") is None:
        return (None,) * num_layers
    window = config.positive("sliding_window")
    types = config.fields.get("layer_types")
    if types is None:
        first = config.get("max_window_layers", int, 28)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    kinds: dict[object, int | None] = {"sliding_attention": window, "full_attention": None}
    if not isinstance(types, list) or len(types) != num_layers or any(kind not in kinds for kind in types):
        raise ModelError(f"{config.path}: layer_types must name full_attention or sliding_attention for every layer")
    return tuple(kinds[kind] for kind in types)
