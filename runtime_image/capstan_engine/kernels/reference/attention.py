"""Attention over a paged KV cache, and the writing of it.

Scores are products of whole matrices, with the H/G query heads of a KV head as rows of one matrix: a third of the time
of `scaled_dot_product_attention` on CPU, for one query as for a long chunk. They are rounded to the model's
dtype before the softmax, whose sums torch keeps in float32.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from capstan_engine.kernels.plan import QkNorm
from capstan_engine.kernels.reference.elementwise import rms_norm, rotate
from capstan_engine.kernels.reference.plan import DecodeGroup, ReferencePlan, Tile


def rotate_and_write_kv(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norm: QkNorm | None,
    cache: torch.Tensor,
    plan: ReferencePlan,
) -> None:
    """`heads` `[T or more, H + 2G, D]`, `cache` `[2, N, G, B, D]`; rows beyond the plan's T tokens are padding."""
    width, num_kv_heads = cache.shape[-1], cache.shape[2]
    num_heads = heads.shape[1] - 2 * num_kv_heads
    if norm is not None:
        queries, keys = heads[:, :num_heads], heads[:, num_heads:-num_kv_heads]
        queries.copy_(rms_norm(queries, norm.query, norm.eps))
        keys.copy_(rms_norm(keys, norm.key, norm.eps))
    rotate(heads[:, :-num_kv_heads], cos, sin)
    kv = heads[: plan.num_tokens, num_heads:].reshape(-1, width)
    cache.view(-1, width).index_copy_(0, plan.slots, kv)


class _Scoring(NamedTuple):
    """How products of queries and keys become weights."""

    scale: float
    soft_cap: float | None
    sinks: torch.Tensor | None
    """`[H]`"""

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        """In place."""
        if self.soft_cap is None:
            return scores
        return scores.div_(self.soft_cap).tanh_().mul_(self.soft_cap)

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Softmax over the last dimension of `[…, H, n, L]`; a sink takes its share and leaves the room."""
        if self.sinks is None:
            return torch.softmax(scores, -1)
        sinks = self.sinks.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat((scores, sinks), -1), -1)[..., :-1]


def attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: ReferencePlan,
    scale: float,
    *,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`q` `[T or more, H, D]`, `cache` `[2, N, G, B, D]` with the step's own keys and values already in it."""
    rows, num_heads, width = q.shape
    scoring = _Scoring(scale, soft_cap, sinks)
    out = q.new_zeros(rows, num_heads, width)
    for group in plan.decodes:
        last = group.first + group.num_sequences
        out[group.first : last] = _decode(q[group.first : last], cache, group, scoring)
    for chunk in plan.chunks:
        keys, values = _gather(cache, chunk.rows, cache.shape[2])
        for tile in chunk.tiles:
            last = tile.first + tile.num_queries
            out[tile.first : last] = _prefill(q[tile.first : last], keys, values, tile, scoring)
    return out.view(rows, num_heads * width)


def _gather(cache: torch.Tensor, rows: torch.Tensor, num_matrices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[num_matrices, L, D]`, each matrix contiguous."""
    planes, num_blocks, heads, size, width = cache.shape
    gathered = cache.view(planes * num_blocks * heads, size * width).index_select(0, rows)
    keys, values = gathered.view(2, num_matrices, -1, width)
    return keys, values


def _decode(q: torch.Tensor, cache: torch.Tensor, group: DecodeGroup, scoring: _Scoring) -> torch.Tensor:
    """`q` `[S, H, D]`, one query of each sequence, to `[S, H, D]`."""
    num, num_heads, width = q.shape
    num_kv_heads = cache.shape[2]
    num_matrices = group.mask.shape[0]  # S·G, S rounded up
    keys, values = _gather(cache, group.rows, num_matrices)
    padding = num_matrices // num_kv_heads - num
    if padding:
        q = functional.pad(q, (0, 0, 0, 0, 0, padding))
    q = q.reshape(num_matrices, num_heads // num_kv_heads, width)
    if scoring.soft_cap is None:
        scores = torch.baddbmm(group.mask, q, keys.transpose(1, 2), alpha=scoring.scale)  # [S·G, H/G, L]
    else:
        scores = scoring.cap(torch.bmm(q, keys.transpose(1, 2)).mul_(scoring.scale)).add_(group.mask)
    weights = scoring.weights(scores.view(-1, num_heads, 1, scores.shape[-1])).reshape_as(scores)
    return torch.bmm(weights, values).view(-1, num_heads, width)[:num]


def _prefill(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tile: Tile, scoring: _Scoring) -> torch.Tensor:
    """`q` `[queries, H, D]` over `keys`, `values` `[G, L, D]` to `[queries, H, D]`."""
    num, num_heads, width = q.shape
    num_kv_heads = keys.shape[0]
    heads = num_heads // num_kv_heads
    if tile.width > num:
        q = functional.pad(q, (0, 0, 0, 0, 0, tile.width - num))
    q = q.view(tile.width, num_kv_heads, heads, width).permute(1, 2, 0, 3)  # [G, H/G, width, D]
    q = q.reshape(num_kv_heads, heads * tile.width, width)
    keys, values = keys[:, : tile.num_keys], values[:, : tile.num_keys]
    scores = torch.baddbmm(q.new_zeros(1), q, keys.transpose(1, 2), beta=0, alpha=scoring.scale)
    by_head = scoring.cap(scores).view(num_heads, tile.width, tile.num_keys)
    by_head[..., tile.num_keys - tile.mask.shape[1] :].add_(tile.mask)
    mixed = torch.bmm(scoring.weights(by_head).view_as(scores), values)  # [G, H/G·width, D]
    return mixed.view(num_heads, tile.width, width)[:, :num].transpose(0, 1)
