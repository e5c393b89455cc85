"""A decoder layer as its parts, for a backend that can compute all layers at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from capstan_engine.kernels.plan import QkNorm
from capstan_engine.kernels.protocol import Backend, Linear, Plan, Rules


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The weights of one layer, in the order in which they are applied."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    """How many keys a query sees, itself included; None is full attention."""
    eps: float
    input_norm: torch.Tensor
    qkv: Linear
    qk_norm: QkNorm | None
    output: Linear
    post_attention_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class FusedLayers(Protocol):
    """All layers, where they can be computed at once."""

    def __call__(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        caches: Sequence[torch.Tensor],
        plans: Mapping[int | None, Any],
    ) -> bool:
        """Take the residual stream `x` `[T or more, M]` through all layers, in place; padding rows stay as they are.

        `cos` and `sin` `[P, 1, D]` are those of every position. False, and nothing has happened, where the step is one
        that must be computed part by part.
        """


class FusingBackend(Backend[Plan, Rules], Protocol[Plan, Rules]):
    """A backend that computes all layers at once in some steps, equal to what their parts would come to."""

    def fuse_layers(self, layers: Sequence[LayerParts]) -> FusedLayers | None:
        """None where it cannot be done with these in any step."""


FusingKernels: TypeAlias = FusingBackend[Any, Any]
