"""Reading config.json: facts in every spelling, and errors that name the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from capstan_engine.errors import ModelError, UnsupportedModel
from capstan_engine.models.families import read_spec
from capstan_engine.models.spec import ModelSpec
from capstan_engine.quant.choose import choose

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def read(directory: Path, generation: dict[str, Any] | None = None, **fields: Any) -> ModelSpec:
    """Fields given as None are left out of the Llama config."""
    config = {name: value for name, value in {**LLAMA, **fields}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return read_spec(directory)


def test_absent_fields_have_the_defaults_of_the_family(tmp_path: Path) -> None:
    spec = read(tmp_path, num_key_value_heads=None)
    assert (spec.num_kv_heads, spec.head_dim, spec.dtype) == (4, 16, "float32")
    assert not any((spec.tie_word_embeddings, spec.qkv_bias, spec.output_bias, spec.mlp_bias, spec.qk_norm))
    assert spec.windows == (None,) * 4
    assert (spec.rope.kind, spec.rope.theta, spec.norm_eps) == ("default", 10_000.0, 1e-6)


def test_head_dim_is_not_derived_where_it_is_stated(tmp_path: Path) -> None:
    assert read(tmp_path, head_dim=24).head_dim == 24
    assert read(tmp_path, architectures=["Qwen3ForCausalLM"]).head_dim == 128


def test_qwen2_has_biases_where_it_says_nothing(tmp_path: Path) -> None:
    spec = read(tmp_path, architectures=["Qwen2ForCausalLM"])
    assert (spec.qkv_bias, spec.output_bias) == (True, False)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, (None, None, None, None)),
        ({"sliding_window": 8}, (None, None, None, None)),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 8)),
        (
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (8, None, 8, None),
        ),
    ],
)
def test_sliding_layers_of_qwen(tmp_path: Path, fields: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read(tmp_path, architectures=["Qwen2ForCausalLM"], **fields).windows == windows


def test_sliding_layers_of_mistral(tmp_path: Path) -> None:
    assert read(tmp_path, architectures=["MistralForCausalLM"], sliding_window=8).windows == (8,) * 4
    assert read(tmp_path, architectures=["MistralForCausalLM"]).windows == (None,) * 4


@pytest.mark.parametrize(
    ("eos", "generation", "expected"),
    [
        (7, None, (7,)),
        ([7, 8], None, (7, 8)),
        (7, {"eos_token_id": [9, 7]}, (9, 7)),
        (7, {"eos_token_id": 7}, (7,)),
        (None, {}, ()),
        (None, {"eos_token_id": 5}, (5,)),
    ],
)
def test_eos_ids_of_both_files_count(
    tmp_path: Path, eos: Any, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    assert read(tmp_path, generation, eos_token_id=eos).eos_token_ids == expected


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 2048),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, 1024),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 512),
    ],
)
def test_scaling_extends_the_positions_where_the_config_states_the_trained_ones(
    tmp_path: Path, rope: dict[str, Any], expected: int
) -> None:
    assert read(tmp_path, **rope).max_positions == expected


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_float16_checkpoints_run_in_bfloat16(tmp_path: Path, key: str) -> None:
    assert read(tmp_path, **{key: "float16"}).dtype == "bfloat16"


def test_an_unknown_architecture_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"MambaForCausalLM.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        read(tmp_path, architectures=["MambaForCausalLM"])


def test_code_of_the_checkpoint_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    spec = read(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert spec.family == "llama"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "64"}, "hidden_size must be int"),
        ({"hidden_size": True}, "hidden_size must be int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}}, "longrope needs"),
        ({"rope_theta": 1}, "rope_theta must be a number above 1"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "factor must be a number above 0"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq_factor must be a number above 4",
        ),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be bool"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"rope_scaling": {"type": "mrope"}}, "rope kind 'mrope'"),
        ({"partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read(tmp_path, **fields)


def test_a_quantized_checkpoint_is_refused_by_the_name_of_its_method() -> None:
    with pytest.raises(UnsupportedModel, match="'gptq'"):
        choose({"quantization_config": {"quant_method": "gptq", "bits": 4}})


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00", "null"])
def test_a_malformed_config_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_spec(tmp_path)


def test_an_absent_directory_or_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        read_spec(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        read_spec(tmp_path)
