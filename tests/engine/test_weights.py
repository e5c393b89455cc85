"""What a damaged, foreign or hostile checkpoint is answered: one error that names the file and the tensor."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from capstan_engine.errors import ModelError, UnsupportedModel
from capstan_engine.models import loading, weights
from tiny_models import CASES, generate, load_runner, random_prompt, write_checkpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", CASES["llama"])


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def test_a_sharded_checkpoint_is_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    sharded = write_checkpoint(tmp_path / "sharded", CASES["llama"], max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    prompt = random_prompt(9)
    assert generate(load_runner(sharded), prompt, 12) == generate(load_runner(checkpoint), prompt, 12)


@pytest.mark.parametrize("most_at_once", [1, 2, 4])
def test_parts_that_are_loaded_at_once_are_the_same_model(
    checkpoint: Path, most_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, reading = random_prompt(9), set[int]()
    expected = generate(load_runner(checkpoint), prompt, 12)
    read = weights.Checkpoint.read

    def watched(*arguments: Any) -> torch.Tensor:
        reading.add(threading.get_ident())
        # Nobody has read everything before another begins.
        time.sleep(0.01)
        return read(*arguments)

    monkeypatch.setattr(loading, "_MOST_AT_ONCE", most_at_once)
    monkeypatch.setattr(weights.Checkpoint, "read", watched)
    assert generate(load_runner(checkpoint), prompt, 12) == expected
    # The last norm is read by who called.
    others = len(reading - {threading.get_ident()})
    assert others == 0 if most_at_once == 1 else 1 < others <= most_at_once


def test_missing_tensors_are_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.pop(K_PROJ))
    with pytest.raises(ModelError, match=rf"missing tensors: {K_PROJ}"):
        load_runner(checkpoint)


def test_unknown_tensors_are_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}))
    with pytest.raises(ModelError, match=r"unknown tensors: model\.layers\.0\.self_attn\.q_proj\.bias"):
        load_runner(checkpoint)


def test_misshapen_tensors_are_named_with_both_shapes(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.update({K_PROJ: torch.zeros(64, 32)}))
    with pytest.raises(ModelError, match=rf"{K_PROJ} is \[64, 32\], not \[32, 64\]"):
        load_runner(checkpoint)


def test_integer_tensors_are_refused(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.update({K_PROJ: torch.zeros(32, 64, dtype=torch.int8)}))
    with pytest.raises(UnsupportedModel, match=rf"{K_PROJ} has dtype I8"):
        load_runner(checkpoint)


def test_leftovers_of_old_checkpoints_are_ignored(checkpoint: Path) -> None:
    prompt = random_prompt(9)
    expected = generate(load_runner(checkpoint), prompt, 8)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(checkpoint, lambda tensors: tensors.update({name: torch.ones(8)}))
    assert generate(load_runner(checkpoint), prompt, 8) == expected


def test_the_second_copy_of_a_tied_embedding_is_ignored(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, CASES["llama-tied"])
    prompt = random_prompt(9)
    expected = generate(load_runner(directory), prompt, 8)
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert generate(load_runner(directory), prompt, 8) == expected


def test_a_head_that_is_not_the_tied_embedding_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, CASES["llama-tied"])
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}))
    with pytest.raises(ModelError, match=r"lm_head\.weight differs .* set it to false there"):
        load_runner(directory)


def test_a_tied_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, CASES["llama-tied"])
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 64)}))
    with pytest.raises(ModelError, match=r"lm_head\.weight differs"):
        load_runner(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece_bytes", [4, 100, 1 << 20])
def test_tensors_are_read_below_each_other_whole_or_in_pieces(
    checkpoint: Path, dtype: torch.dtype, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PIECE_BYTES", piece_bytes)
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    stored = load_file(checkpoint / WEIGHTS)
    opened = weights.Checkpoint(checkpoint)
    expected = torch.cat([stored[name] for name in names]).to(dtype)
    assert torch.equal(opened.read(names, dtype, "cpu"), expected)


def test_memory_is_lent_again_only_when_nobody_holds_what_was_read_into_it(tmp_path: Path) -> None:
    stored = {name: torch.randn(1000, 512) for name in ("a", "b", "c")}
    save_file(
        {name: each[: 700 if name == "b" else 1000].contiguous() for name, each in stored.items()},
        tmp_path / "model.safetensors",
    )
    checkpoint = weights.Checkpoint(tmp_path)
    first = checkpoint.read(["a"], torch.float32, "cpu")
    address, view = first.data_ptr(), first[3:5]
    del first
    second = checkpoint.read(["c"], torch.float32, "cpu")
    assert second.data_ptr() != address
    assert torch.equal(view, stored["a"][3:5])
    address = second.data_ptr()
    del second
    smaller = checkpoint.read(["b"], torch.float32, "cpu")
    assert smaller.data_ptr() == address
    assert torch.equal(smaller, stored["b"][:700])
    assert torch.equal(view, stored["a"][3:5])


def test_a_file_that_is_cut_while_it_is_read_is_an_error_that_names_it(checkpoint: Path) -> None:
    names = load_file(checkpoint / WEIGHTS).keys()
    opened = weights.Checkpoint(checkpoint)
    path = checkpoint / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors: tensor .* cannot be read: .* shorter"):
        _ = [opened.read([name], torch.float32, "cpu") for name in names]


@pytest.mark.parametrize("length", [0, 7, 200, -40])
def test_a_file_cut_short_is_an_error_that_names_it(checkpoint: Path, length: int) -> None:
    path = checkpoint / WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_runner(checkpoint)


def test_a_file_of_garbage_is_an_error_that_names_it(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_runner(checkpoint)


def test_pickles_are_refused_and_never_opened(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / "pytorch_model.bin").mkdir()  # opening it would raise IsADirectoryError
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin.*convert the checkpoint to safetensors"):
        load_runner(checkpoint)


def test_a_directory_without_weights_says_what_it_lacks(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_runner(checkpoint)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "", 7, None])
def test_an_index_cannot_lead_out_of_its_directory(checkpoint: Path, file: object) -> None:
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {K_PROJ: file}}))
    with pytest.raises(ModelError, match=r"must be the name of a \.safetensors file in this directory"):
        load_runner(checkpoint)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "{", "[" * 100_000])
def test_a_malformed_index_is_an_error_that_names_it(checkpoint: Path, text: str) -> None:
    (checkpoint / INDEX).write_text(text)
    with pytest.raises(ModelError, match=r"index\.json"):
        load_runner(checkpoint)


def test_an_index_that_names_an_absent_file_is_an_error(checkpoint: Path) -> None:
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {K_PROJ: "model-9.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-9\.safetensors"):
        load_runner(checkpoint)


def test_an_index_that_lies_about_a_tensor_is_an_error(checkpoint: Path) -> None:
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weights": WEIGHTS}}))
    with pytest.raises(ModelError, match=r"model\.norm\.weights is not in model\.safetensors"):
        load_runner(checkpoint)
