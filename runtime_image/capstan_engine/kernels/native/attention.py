"""Rotary embedding, KV write and attention of single queries, in bfloat16; torch does the rest.

Prompts stay with the reference: there attention is a product of large matrices, which oneDNN does as well as anybody.
"""

import ctypes
from dataclasses import replace

import torch

from capstan_engine.kernels import reference
from capstan_engine.kernels.native.library import required
from capstan_engine.kernels.native.planning import NativePlan
from capstan_engine.kernels.plan import QkNorm

VECTOR = 32
"""Head widths are multiples of this, or go to torch."""


def rotate_and_write_kv(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norm: QkNorm | None,
    cache: torch.Tensor,
    plan: NativePlan,
) -> None:
    """`heads` `[T or more, H + 2G, D]`, contiguous; rows beyond the plan's T tokens are padding, left as they are."""
    places = plan.in_torch
    if heads.dtype is not torch.bfloat16:
        reference.rotate_and_write_kv(heads, cos, sin, norm, cache, places)
        return
    num_kv_heads = cache.shape[2]
    required().capstan_rotate_and_write(
        heads.data_ptr(),
        places.num_tokens,
        heads.shape[1] - 2 * num_kv_heads,
        num_kv_heads,
        heads.shape[2],
        cos.data_ptr(),
        sin.data_ptr(),
        None if norm is None else norm.query.data_ptr(),
        None if norm is None else norm.key.data_ptr(),
        0.0 if norm is None else norm.eps,
        places.slots.data_ptr(),
        cache.data_ptr(),
    )


def attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: NativePlan,
    scale: float,
    *,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`q` `[T or more, H, D]`, each row contiguous, over `cache` `[2, N, G, B, D]`."""
    rows, num_heads, width = q.shape
    if q.dtype is not torch.bfloat16 or width % VECTOR or soft_cap is not None or sinks is not None:
        return reference.attention(q, cache, plan.in_torch, scale, soft_cap=soft_cap, sinks=sinks)
    if plan.has_chunks:
        out = reference.attention(q, cache, replace(plan.in_torch, decodes=()), scale)
    else:
        # Padding rows are never looked at, but what they hold must be a number.
        out = q.new_zeros(rows, num_heads * width)
    if plan.decodes.num:
        required().capstan_decode(
            q.data_ptr(),
            q.stride(0),
            num_heads,
            cache.shape[2],
            width,
            cache.data_ptr(),
            ctypes.byref(plan.decodes),
            plan.window or 0,
            scale,
            out.data_ptr(),
        )
    return out
