"""Rotary embedding, KV write and attention of single queries, in bfloat16; torch does the rest.

Prompts stay with the reference: there attention is a product of large matrices, which oneDNN does as well as anybody.
"""

from dataclasses import replace

import torch

from capstan_engine.kernels import reference
from capstan_engine.kernels.native.library import required
from capstan_engine.kernels.plan import QkNorm
from capstan_engine.kernels.reference.plan import DecodeGroup, ReferencePlan

VECTOR = 32
"""Head widths are multiples of this, or go to torch."""


def rotate_and_write_kv(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norm: QkNorm | None,
    cache: torch.Tensor,
    plan: ReferencePlan,
) -> None:
    """`heads` `[T or more, H + 2G, D]`, contiguous; rows beyond the plan's T tokens are padding, left as they are."""
    if heads.dtype is not torch.bfloat16:
        reference.rotate_and_write_kv(heads, cos, sin, norm, cache, plan)
        return
    num_kv_heads = cache.shape[2]
    required().capstan_rotate_and_write(
        heads.data_ptr(),
        plan.num_tokens,
        heads.shape[1] - 2 * num_kv_heads,
        num_kv_heads,
        heads.shape[2],
        cos.data_ptr(),
        sin.data_ptr(),
        None if norm is None else norm.query.data_ptr(),
        None if norm is None else norm.key.data_ptr(),
        0.0 if norm is None else norm.eps,
        plan.slots.data_ptr(),
        cache.data_ptr(),
    )


def attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: ReferencePlan,
    scale: float,
    *,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`q` `[T or more, H, D]`, each row contiguous, over `cache` `[2, N, G, B, D]`."""
    rows, num_heads, width = q.shape
    if q.dtype is not torch.bfloat16 or width % VECTOR or soft_cap is not None or sinks is not None:
        return reference.attention(q, cache, plan, scale, soft_cap=soft_cap, sinks=sinks)
    if plan.chunks:
        out = reference.attention(q, cache, replace(plan, decodes=()), scale)
    else:
        # Padding rows are never looked at, but what they hold must be a number.
        out = q.new_zeros(rows, num_heads * width)
    num_kv_heads, block_size = cache.shape[2], cache.shape[3]
    for group in plan.decodes:
        required().capstan_decode(
            q[group.first].data_ptr(),
            q.stride(0),
            group.num_sequences,
            num_heads,
            num_kv_heads,
            width,
            cache.data_ptr(),
            block_size,
            *keys_of(group),
            scale,
            out[group.first].data_ptr(),
        )
    return out


def keys_of(group: DecodeGroup) -> tuple[int, int, int, int]:
    """Address of the block table, blocks of each row, numbers up to the rows of values, and address of the mask."""
    num_keys = group.rows.numel() // 2
    return group.rows.data_ptr(), num_keys // group.mask.shape[0], num_keys, group.mask.data_ptr()
