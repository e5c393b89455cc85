"""A decoder layer as its parts, for a backend that can compute more than one of them at once."""

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
    eps: float
    input_norm: torch.Tensor
    qkv: Linear
    qk_norm: QkNorm | None
    output: Linear
    post_attention_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class FusedLayer(Protocol):
    """A layer that is computed at once, where it can be."""

    def __call__(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: torch.Tensor,
        plan: Any,
    ) -> torch.Tensor | None:
        """What the layer adds to the residual stream `x` `[T, M]` at its end; `delta` is what the one before left.

        None, and nothing has happened, where the step is one that must be computed part by part.
        """


class FusingBackend(Backend[Plan, Rules], Protocol[Plan, Rules]):
    """A backend that computes a whole layer at once in some steps, equal to what its parts would come to."""

    def fuse_layer(self, parts: LayerParts) -> FusedLayer | None:
        """None where it cannot be done with these parts in any step."""


FusingKernels: TypeAlias = FusingBackend[Any, Any]
