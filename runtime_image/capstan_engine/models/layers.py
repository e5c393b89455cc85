"""One transformer layer: attention and gated feed-forward, each added to the residual stream."""

import torch

from capstan_engine.kernels import AttentionPlan, Kernels, LayerParts


class DecoderLayer:
    """Weights of one layer and the order in which they are applied."""

    def __init__(self, kernels: Kernels, parts: LayerParts) -> None:
        self.window = parts.window
        self._kernels = kernels
        self._parts = parts

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

        That addition is left to the next layer, whose norm reads the sum anyway: `delta` is what the layer before left,
        and its memory may be used again. The residual stream `x` `[T, M]` changes in place.
        """
        kernels, parts = self._kernels, self._parts
        if delta is None:
            hidden = kernels.rms_norm(x, parts.input_norm, parts.eps)
        else:
            hidden = kernels.add_rms_norm(x, delta, parts.input_norm, parts.eps)
        heads = parts.qkv(hidden).view(x.shape[0], -1, parts.head_dim)  # [T, H + 2G, D]
        kernels.rotate_and_write_kv(heads, cos, sin, parts.qk_norm, cache, plan)
        mixed = kernels.attention(heads[:, : parts.num_heads], cache, plan, parts.head_dim**-0.5)
        hidden = kernels.add_rms_norm(x, parts.output(mixed), parts.post_attention_norm, parts.eps)
        return parts.down(kernels.silu_and_mul(parts.gate_up(hidden)))
