"""What a kernel backend offers. Nothing here knows a request, a model or a configuration."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from capstan_engine.kernels.plan import AttentionPlan, KvLayout, Span

Linear = Callable[[torch.Tensor], torch.Tensor]
"""`[T, K] -> [T, N]`: a weight, packed as its backend likes it, with its bias."""


class Kernels(Protocol):
    """The names that a backend module has."""

    def round_up(self, num_tokens: int) -> int:
        """The number of rows to compute for `num_tokens` wanted ones: few distinct sizes, at most a quarter more."""

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """`weight` `[N, K]` and `bias` `[N]` made ready for products with `[T, K]` activations of the same dtype."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`x / sqrt(mean(x²) + eps) * weight` over the last dimension; reduced in float32."""

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Rotary embedding of `x` `[T, heads, D]` in place; `cos` and signed `sin` are `[T, 1, D]`."""

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, 2F] -> [T, F]`: silu of the first half times the second."""

    def plan_attention(
        self, spans: Sequence[Span], layout: KvLayout, windows: Sequence[int | None], dtype: torch.dtype
    ) -> dict[int | None, AttentionPlan]:
        """What one step's attention needs in every layer, once per distinct sliding window."""

    def write_kv(self, cache: torch.Tensor, kv: torch.Tensor, plan: AttentionPlan) -> None:
        """Put the step's keys and values `kv` `[T, 2G, D]` (all key heads, then all value heads) into their slots."""

    def attention(self, q: torch.Tensor, cache: torch.Tensor, plan: AttentionPlan, scale: float) -> torch.Tensor:
        """Causal attention of `q` `[T, H, D]` over the paged `cache`: `[T, H·D]`."""
