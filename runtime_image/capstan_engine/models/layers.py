"""One transformer layer: attention and gated feed-forward, each added to the residual stream."""

from dataclasses import dataclass

import torch

from capstan_engine.kernels import AttentionPlan, Kernels, Linear, QkNorm


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Weights of one layer and the order in which they are applied."""

    kernels: Kernels
    num_heads: int
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
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: torch.Tensor,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """Writes keys and values to `cache` `[2, N, G, B, D]` and returns what the layer adds to `x` at its end.

        That addition is left to the next layer, whose norm reads the sum anyway: `delta` is what the layer before left.
        The residual stream `x` `[T, M]` changes in place.
        """
        kernels = self.kernels
        if delta is None:
            hidden = kernels.rms_norm(x, self.input_norm, self.eps)
        else:
            hidden = kernels.add_rms_norm(x, delta, self.input_norm, self.eps)
        heads = self.qkv(hidden).view(x.shape[0], -1, self.head_dim)  # [T, H + 2G, D]
        kernels.rotate_and_write_kv(heads, cos, sin, self.qk_norm, cache, plan)
        mixed = kernels.attention(heads[:, : self.num_heads], cache, plan, self.head_dim**-0.5)
        hidden = kernels.add_rms_norm(x, self.output(mixed), self.post_attention_norm, self.eps)
        return self.down(kernels.silu_and_mul(self.gate_up(hidden)))
