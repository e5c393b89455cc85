"""The seam of quantization: a format says which tensors a linear layer has, and turns them into something to call."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from capstan_engine.kernels import Kernels, Linear
from capstan_engine.quant.storage import LinearSpec


class Format(Protocol):
    """How the linear layers of a model are stored, and how they are held."""

    @property
    def head(self) -> "Format":
        """The format of the output head: a coarse one there costs the most, so it may be a finer one."""

    def tensors(self, spec: LinearSpec) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that this layer has in the checkpoint."""

    def load(
        self, read: Callable[[Sequence[str]], torch.Tensor], specs: Sequence[LinearSpec], kernels: Kernels
    ) -> Linear:
        """One callable for layers that share their input: outputs side by side, in the order of `specs`.

        `read` returns tensors of the checkpoint below each other, as one.
        """

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels) -> Linear:
        """The same for a weight `[N, K]` that is in memory already; it may share the memory and never changes it."""
