"""The seam of quantization: a format says which tensors a linear layer has, and turns them into something to call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from capstan_engine.kernels import Kernels, Linear


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """One linear layer as the checkpoint's model class declares it; `name` is its prefix (`….self_attn.q_proj`)."""

    name: str
    out_features: int
    in_features: int
    bias: bool = False


class Format(Protocol):
    """How the linear layers of a checkpoint are stored."""

    def tensors(self, spec: LinearSpec) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that this layer has in the checkpoint."""

    def load(self, read: Callable[[str], torch.Tensor], specs: Sequence[LinearSpec], kernels: Kernels) -> Linear:
        """One callable for layers that share their input: outputs side by side, in the order of `specs`."""
