"""One transformer layer: attention and gated feed-forward, each added to the residual stream."""

from dataclasses import dataclass

import torch

from capstan_engine.kernels import AttentionPlan, Kernels, Linear


@dataclass(frozen=True, slots=True)
class QkNorm:
    """Norms over the width of each query and key head (Qwen3)."""

    query: torch.Tensor
    key: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Weights of one layer and the order in which they are applied."""

    kernels: Kernels
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    window: int | None
    input_norm: torch.Tensor
    qkv: Linear
    qk_norm: QkNorm | None
    output: Linear
    post_attention_norm: torch.Tensor
    gate_up: Linear
    down: Linear

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: torch.Tensor, plan: AttentionPlan
    ) -> None:
        """Changes the residual stream `x` `[T, M]` in place; writes keys and values to `cache` `[2, N, G, B, D]`."""
        kernels = self.kernels
        qkv = self.qkv(kernels.rms_norm(x, self.input_norm, self.eps))
        heads = qkv.view(x.shape[0], -1, self.head_dim)  # [T, H + 2G, D]
        queries, num_rotated = heads[:, : self.num_heads], self.num_heads + self.num_kv_heads
        if self.qk_norm is not None:
            keys = heads[:, self.num_heads : num_rotated]
            queries.copy_(kernels.rms_norm(queries, self.qk_norm.query, self.eps))
            keys.copy_(kernels.rms_norm(keys, self.qk_norm.key, self.eps))
        kernels.rotate(heads[:, :num_rotated], cos, sin)
        kernels.write_kv(cache, heads[:, self.num_heads :], plan)
        mixed = kernels.attention(queries, cache, plan, self.head_dim**-0.5)
        x.add_(self.output(mixed))
        hidden = kernels.rms_norm(x, self.post_attention_norm, self.eps)
        x.add_(self.down(kernels.silu_and_mul(self.gate_up(hidden))))
