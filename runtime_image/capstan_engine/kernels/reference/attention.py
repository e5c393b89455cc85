"""Attention over a paged KV cache, and the writing of it.

Scores are products of whole matrices, with the H/G query heads of a KV head as rows of one matrix: a third of the time
of `scaled_dot_product_attention` on CPU, for one query as for a long chunk. They are rounded to the model's
dtype before the softmax, whose sums torch keeps in float32.
"""

import torch
from torch.nn import functional

from capstan_engine.kernels.plan import AttentionPlan, DecodeGroup, Tile


def write_kv(cache: torch.Tensor, kv: torch.Tensor, plan: AttentionPlan) -> None:
    """`kv` `[T or more, 2G, D]` into `cache` `[2, N, G, B, D]`; rows beyond the plan's T tokens are padding."""
    width = cache.shape[-1]
    cache.view(-1, width).index_copy_(0, plan.slots, kv[: plan.num_tokens].reshape(-1, width))


def attention(q: torch.Tensor, cache: torch.Tensor, plan: AttentionPlan, scale: float) -> torch.Tensor:
    """`q` `[T or more, H, D]`, `cache` `[2, N, G, B, D]` with the step's own keys and values already in it."""
    rows, num_heads, width = q.shape
    out = q.new_zeros(rows, num_heads, width)
    for group in plan.decodes:
        last = group.first + group.num_sequences
        out[group.first : last] = _decode(q[group.first : last], cache, group, scale)
    for chunk in plan.chunks:
        keys, values = _gather(cache, chunk.rows, cache.shape[2])
        for tile in chunk.tiles:
            last = tile.first + tile.num_queries
            out[tile.first : last] = _prefill(q[tile.first : last], keys, values, tile, scale)
    return out.view(rows, num_heads * width)


def _gather(cache: torch.Tensor, rows: torch.Tensor, num_matrices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[num_matrices, L, D]`, each matrix contiguous."""
    planes, num_blocks, heads, size, width = cache.shape
    gathered = cache.view(planes * num_blocks * heads, size * width).index_select(0, rows)
    keys, values = gathered.view(2, num_matrices, -1, width)
    return keys, values


def _decode(q: torch.Tensor, cache: torch.Tensor, group: DecodeGroup, scale: float) -> torch.Tensor:
    """`q` `[S, H, D]`, one query of each sequence, to `[S, H, D]`."""
    num, num_heads, width = q.shape
    num_kv_heads = cache.shape[2]
    num_matrices = group.mask.shape[0]  # S·G, S rounded up
    keys, values = _gather(cache, group.rows, num_matrices)
    padding = num_matrices // num_kv_heads - num
    if padding:
        q = functional.pad(q, (0, 0, 0, 0, 0, padding))
    q = q.reshape(num_matrices, num_heads // num_kv_heads, width)
    scores = torch.baddbmm(group.mask, q, keys.transpose(1, 2), alpha=scale)  # [S·G, H/G, L]
    return torch.bmm(torch.softmax(scores, -1), values).view(-1, num_heads, width)[:num]


def _prefill(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tile: Tile, scale: float) -> torch.Tensor:
    """`q` `[queries, H, D]` over `keys`, `values` `[G, L, D]` to `[queries, H, D]`."""
    num, num_heads, width = q.shape
    num_kv_heads = keys.shape[0]
    heads = num_heads // num_kv_heads
    if tile.width > num:
        q = functional.pad(q, (0, 0, 0, 0, 0, tile.width - num))
    q = q.view(tile.width, num_kv_heads, heads, width).permute(1, 2, 0, 3)  # [G, H/G, width, D]
    q = q.reshape(num_kv_heads, heads * tile.width, width)
    keys, values = keys[:, : tile.num_keys], values[:, : tile.num_keys]
    scores = torch.baddbmm(q.new_zeros(1), q, keys.transpose(1, 2), beta=0, alpha=scale)
    by_head = scores.view(num_kv_heads, heads, tile.width, tile.num_keys)
    by_head[..., tile.num_keys - tile.mask.shape[1] :].add_(tile.mask)
    mixed = torch.bmm(torch.softmax(scores, -1), values)  # [G, H/G·width, D]
    return mixed.view(num_heads, tile.width, width)[:, :num].transpose(0, 1)
