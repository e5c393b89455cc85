"""Attention of one step: single queries and chunks each by the kernel made for them, into disjoint rows."""

import torch

from capstan_engine.kernels.triton.decode import decode
from capstan_engine.kernels.triton.planning import TritonPlan
from capstan_engine.kernels.triton.prefill import prefill
from capstan_engine.kernels.triton.tuning import tile_for


def attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: TritonPlan,
    scale: float,
    *,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`q` `[T or more, H, D]`, `cache` `[2, N, G, B, D]`; rows beyond the plan's T tokens are left as they come."""
    rows, num_heads, width = q.shape
    out = torch.empty(rows, num_heads * width, dtype=q.dtype, device=q.device)
    problem = (width, q.element_size(), num_heads // cache.shape[2])
    if plan.decodes is not None:
        decode(q, cache, plan.decodes, out, scale, soft_cap, sinks, tile_for("decode", *problem))
    if plan.chunks is not None:
        prefill(q, cache, plan.chunks, out, scale, plan.window, soft_cap, sinks, tile_for("prefill", *problem))
    return out
