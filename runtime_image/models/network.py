"""A plain torch Llama for training: no cache, no sampling, parameters named as Hugging Face names them.

This module knows tensors and the two shapes that ship; it does not know data or optimizers. Because the modules carry
the checkpoint's names, `state_dict` is the checkpoint and exporting needs no mapping.

Letters: B rows, T tokens, H query heads, G KV heads, D head width, M hidden, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """The sizes of one Llama; the defaults are shared by both shipped models."""

    hidden: int
    layers: int
    query_heads: int
    kv_heads: int
    feed_forward: int
    vocab: int = 4096
    head_dim: int = 64
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 8192


SHAPES = {
    "capstan-tiny": Shape(hidden=384, layers=6, query_heads=6, kv_heads=2, feed_forward=1024),
    "capstan-tiny-draft": Shape(hidden=128, layers=3, query_heads=2, kv_heads=1, feed_forward=352),
}


class RMSNorm(nn.Module):
    """Root mean square normalization (Zhang and Sennrich, 2019), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each `[length, head_dim]` float32 (Su et al., 2021, in Llama's half-split layout)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to `x [B, H, T, D]`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention over whole rows."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.group = shape.query_heads // shape.kv_heads
        self.q_proj = nn.Linear(shape.hidden, shape.query_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.query_heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H or G, T, D]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        output: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return output


class Decoder(nn.Module):
    """Embeddings, layers and the final norm: everything that Hugging Face keeps under `model.`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.embed_tokens(tokens).to(cos.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        normed: Tensor = self.norm(x)
        return normed


class Llama(nn.Module):
    """The language model; the embedding is also the output matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # Residual writers start small, so that depth does not grow the residual stream (GPT-2).
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5 if writes else 0.02)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return final hidden states `[B, T, M]` for token ids `[B, T]`."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        cos, sin = rotary_tables(tokens.shape[1], self.shape.head_dim, self.shape.rope_theta)
        states: Tensor = self.model(tokens, cos.to(dtype), sin.to(dtype))
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits `[..., V]` of hidden states `[..., M]`."""
        return functional.linear(hidden, self.model.embed_tokens.weight).float()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return float32 logits `[B, T, V]` for token ids `[B, T]`."""
        return self.logits(self.hidden(tokens))
