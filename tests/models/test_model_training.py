"""The training script: that it learns, resumes exactly, and exports what it trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.dataset import WINDOW_TOKENS, Dataset, prepare_text
from models.network import Llama, Shape
from models.train import main
from models.training import Recipe, Trainer, next_token_loss

SMALL = Shape(hidden=32, layers=2, query_heads=2, kv_heads=1, feed_forward=64, vocab=4096, head_dim=16)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A few thousand tokens that follow one simple rule."""
    path = tmp_path / "counting.txt"
    path.write_text("".join(f"Item {number} comes after item {number - 1}.\n" for number in range(1, 700)))
    return path


@pytest.fixture
def data(text: Path, tmp_path: Path) -> Dataset:
    return prepare_text(tmp_path / "data", [text])


def recipe(steps: int) -> Recipe:
    return Recipe(steps, batch_tokens=2048, micro_batch_tokens=1024, warmup_steps=2)


def trainer(data: Dataset, steps: int) -> Trainer:
    torch.manual_seed(0)
    return Trainer(Llama(SMALL), data, recipe(steps))


def test_twenty_steps_lower_the_loss(data: Dataset, tmp_path: Path) -> None:
    losses = [loss for _, loss in trainer(data, 20).run(tmp_path / "checkpoint.safetensors")]
    assert losses[-1] < losses[0] - 1


def test_a_stopped_run_continues_as_if_it_had_not_been_stopped(data: Dataset, tmp_path: Path) -> None:
    whole = trainer(data, 6)
    for _ in whole.run(tmp_path / "whole.safetensors"):
        pass
    first = trainer(data, 6)
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "part.safetensors")
    second = trainer(data, 6)
    second.load(tmp_path / "part.safetensors")
    for _ in second.run(tmp_path / "rest.safetensors"):
        pass
    for (name, expected), (_, found) in zip(
        whole.model.named_parameters(), second.model.named_parameters(), strict=True
    ):
        assert torch.equal(expected, found), name


def test_steps_read_every_window_once_an_epoch(data: Dataset) -> None:
    num_steps = data.num_windows // 2
    assert num_steps >= 2
    rows = [row for step in range(num_steps) for row in data.batch(step, 2, WINDOW_TOKENS, seed=0)[0]]
    assert len({tuple(row.tolist()) for row in rows}) == 2 * num_steps


def test_targets_are_the_inputs_one_token_later_whatever_the_row_length(data: Dataset) -> None:
    inputs, targets = data.batch(0, 3, WINDOW_TOKENS, seed=0)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    short_inputs, short_targets = data.batch(0, 3, 256, seed=0)
    assert torch.equal(short_inputs.flatten(), inputs.flatten())
    assert torch.equal(short_targets.flatten(), targets.flatten())


def test_rate_warms_up_stays_and_falls_to_zero_only_in_the_last_part() -> None:
    plan = Recipe(steps=100, warmup_steps=10, decay_share=0.2)
    factors = [plan.rate_factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == [1.0] * 72
    assert factors[90] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.05)
    longer = Recipe(steps=200, warmup_steps=10, decay_share=0.2)
    assert factors[:80] == [longer.rate_factor(step) for step in range(80)]


def test_a_student_equal_to_its_teacher_has_nothing_left_to_learn(data: Dataset) -> None:
    torch.manual_seed(0)
    model = Llama(SMALL)
    inputs, targets = data.batch(0, 1, 256, seed=0)
    next_token_loss(model, inputs, targets, teacher=model).backward()
    taught = sum(weight.grad.abs().max().item() for weight in model.parameters() if weight.grad is not None)
    model.zero_grad()
    next_token_loss(model, inputs, targets).backward()
    told = sum(weight.grad.abs().max().item() for weight in model.parameters() if weight.grad is not None)
    assert taught < told / 20


def test_the_command_trains_on_text_files_and_exports_a_whole_directory(text: Path, tmp_path: Path) -> None:
    arguments = [
        "--model",
        "capstan-tiny-draft",
        "--text",
        str(text),
        "--build",
        str(tmp_path),
        "--output",
        str(tmp_path),
    ]
    main([*arguments, "--steps", "2"])
    directory = tmp_path / "capstan-tiny-draft"
    assert {path.name for path in directory.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    trained = load_file(tmp_path / "train" / "capstan-tiny-draft.safetensors")
    for name, weight in load_file(directory / "model.safetensors").items():
        assert torch.equal(weight, trained[f"model.{name}"].bfloat16()), name


def test_text_that_is_too_short_is_refused_by_its_option(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    with pytest.raises(SystemExit, match="--text: the files hold"):
        main(["--text", str(short), "--build", str(tmp_path), "--output", str(tmp_path), "--steps", "1"])
