"""The training loop: schedule, optimizers, checkpoints.

This module knows how weights move; it does not know files of text or how a model is shipped. The schedule is
warm-up, stable, decay (Hu et al., 2024): the learning rate depends on the end only in the last part, so a run in its
stable part can be resumed with another number of steps, shorter or longer, and still be the run it would have been.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer

from models.dataset import WINDOW_TOKENS, Dataset
from models.network import Llama

# Rows whose logits are alive at once: 256 x 4096 floats stay in the cache.
_LOGIT_ROWS = 256


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights besides data and shape."""

    steps: int
    seed: int = 0
    batch_tokens: int = 8192
    micro_batch_tokens: int = 4096
    matrix_rate: float = 5e-3
    vector_rate: float = 5e-3
    weight_decay: float = 0.1
    warmup_steps: int = 40
    decay_share: float = 0.2
    clip_norm: float = 1.0

    @property
    def decay_start(self) -> int:
        """The first step of the decay."""
        return min(self.steps - 1, self.steps - round(self.steps * self.decay_share))

    def rate_factor(self, step: int) -> float:
        """The learning rate at `step` as a share of its peak."""
        return min((step + 1) / self.warmup_steps, 1.0, (self.steps - step) / (self.steps - self.decay_start))

    def sequence_length(self, step: int) -> int:
        """Rows grow from 256 over 512 to 1024 tokens: attention is a third of a long step, and words come first."""
        if step >= self.decay_start:
            return WINDOW_TOKENS
        return WINDOW_TOKENS // 4 if step < 0.4 * self.steps else WINDOW_TOKENS // 2


def next_token_loss(model: Llama, inputs: Tensor, targets: Tensor, teacher: Llama | None = None) -> Tensor:
    """Return the summed loss in nats over `inputs [B, T]`: against the targets, or against the teacher's distribution.

    A draft is there to guess what its target would say, so learning the target's distribution (Hinton et al., 2015)
    serves it better than learning the text.
    """
    total = torch.zeros(())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.hidden(inputs).flatten(0, 1)
        with torch.no_grad():
            goals = targets.flatten() if teacher is None else teacher.hidden(inputs).flatten(0, 1)
        parts = zip(torch.split(hidden, _LOGIT_ROWS), torch.split(goals, _LOGIT_ROWS), strict=True)
        for rows, goal in parts:
            if teacher is not None:
                with torch.no_grad():
                    goal = teacher.logits(goal).softmax(-1)
            total = total + functional.cross_entropy(model.logits(rows), goal, reduction="sum")
    return total


class Trainer:
    """One run: a model, its two optimizers and the step it has reached.

    Matrices are moved by Muon (Jordan et al., 2024), everything else and the shared embedding by AdamW. A teacher
    speaks during the decay only: before it, the text itself teaches as well and costs less.
    """

    def __init__(self, model: Llama, data: Dataset, recipe: Recipe, teacher: Llama | None = None) -> None:
        self.model, self.data, self.recipe, self.teacher = model, data, recipe, teacher
        self.step = 0
        self.seconds = 0.0
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, weight in model.named_parameters():
            (matrices if weight.ndim == 2 and "embed" not in name else others).append(weight)
        muon = Muon(matrices, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
        self._peak_rates: dict[Optimizer, float] = {muon: recipe.matrix_rate, adamw: recipe.vector_rate}
        self._owners: dict[Tensor, Optimizer] = {
            **dict.fromkeys(matrices, muon),
            **dict.fromkeys(others, adamw),
        }

    def train_step(self) -> float:
        """Take one step; return its mean loss in nats per token."""
        recipe = self.recipe
        inputs, targets = self.data.batch(
            self.step, recipe.batch_tokens // WINDOW_TOKENS, recipe.sequence_length(self.step), recipe.seed
        )
        teacher = self.teacher if self.step >= recipe.decay_start else None
        rows = recipe.micro_batch_tokens // inputs.shape[1]
        loss = 0.0
        for part, wanted in zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True):
            share = next_token_loss(self.model, part, wanted, teacher) / targets.numel()
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        for optimizer, peak in self._peak_rates.items():
            for group in optimizer.param_groups:
                group["lr"] = peak * recipe.rate_factor(self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        self.step += 1
        return loss

    def run(self, checkpoint: Path, save_every_s: float = 180.0) -> Iterator[tuple[int, float]]:
        """Train to the recipe's end, saving every `save_every_s` seconds; yield each step's number and loss."""
        saved = time.monotonic()
        while self.step < self.recipe.steps:
            started = time.monotonic()
            loss = self.train_step()
            now = time.monotonic()
            self.seconds += now - started
            if now - saved > save_every_s or self.step == self.recipe.steps:
                self.save(checkpoint)
                saved = now
            yield self.step, loss

    def save(self, path: Path) -> None:
        """Write weights, optimizer states, step and time; a reader sees the old file or the new one, never a part."""
        tensors = {f"model.{name}": weight.detach() for name, weight in self.model.named_parameters()}
        for name, key, value in self._states():
            tensors[f"optimizer.{name}.{key}"] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".partial")
        save_file(tensors, written, metadata={"step": str(self.step), "seconds": f"{self.seconds:.1f}"})
        written.replace(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same shape."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
            parameters = dict(self.model.named_parameters())
            for key in file.keys():  # noqa: SIM118 - the file is no mapping
                kind, _, rest = key.partition(".")
                if kind == "model":
                    with torch.no_grad():
                        parameters[rest].copy_(file.get_tensor(key))
                else:
                    name, _, state = rest.rpartition(".")
                    self._owners[parameters[name]].state[parameters[name]][state] = file.get_tensor(key)

    def _states(self) -> Iterator[tuple[str, str, Tensor]]:
        for name, weight in self.model.named_parameters():
            for key, value in self._owners[weight].state[weight].items():
                yield name, key, value
