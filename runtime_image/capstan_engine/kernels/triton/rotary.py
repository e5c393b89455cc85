"""From a projection to what attention reads, in one pass: norm of queries and keys, rotary embedding, KV write.

A cache of 8-bit floats takes keys and values without a scale: the relative error of a floating number does not depend
on one, and what e4m3 cannot hold (beyond ±448) is cut off.
"""

import torch
import triton
import triton.language as tl

from capstan_engine.kernels.plan import QkNorm
from capstan_engine.kernels.triton.planning import TritonPlan
from capstan_engine.kernels.triton.tiles import power_of_two

_BLOCK_HEADS = 8
"""Heads of one program: with 128 wide ones 16 numbers a thread."""


def rotate_and_write_kv(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norm: QkNorm | None,
    cache: torch.Tensor,
    plan: TritonPlan,
) -> None:
    """`heads` `[T or more, H + 2G, D]`, `cos` and `sin` `[T or more, 1, D]`, `cache` `[2, N, G, B, D]`; contiguous."""
    num_kv_heads, block_size, width = cache.shape[2:]
    num_all = heads.shape[1]
    rotate_and_write_kv_kernel[(plan.slots.shape[0], triton.cdiv(num_all, _BLOCK_HEADS))](
        heads,
        cos,
        sin,
        norm.query if norm else None,
        norm.key if norm else None,
        norm.eps if norm else 0.0,
        cache,
        plan.slots,
        cache.stride(0),
        NUM_HEADS=num_all - 2 * num_kv_heads,
        NUM_KV_HEADS=num_kv_heads,
        WIDTH=width,
        BLOCK_SIZE=block_size,
        NORMED=norm is not None,
        SATURATES=cache.dtype == torch.float8_e4m3fn,
        BLOCK_HEADS=_BLOCK_HEADS,
        BLOCK_HALF=power_of_two(width // 2),
        num_warps=2,
    )


@triton.jit
def rotate_and_write_kv_kernel(
    heads: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    eps: tl.tensor,
    cache: tl.tensor,
    slots: tl.tensor,
    values: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NORMED: tl.constexpr,
    SATURATES: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Grid `(T, (H + 2G) / BLOCK_HEADS)`. A head is held as its two halves, which turn into each other."""
    HALF: tl.constexpr = WIDTH // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    dim = tl.arange(0, BLOCK_HALF)[None, :]
    in_half = dim < HALF
    inside = (head < NUM_HEADS + 2 * NUM_KV_HEADS) & in_half
    address = heads + (token * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * WIDTH + dim
    x = tl.load(address, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(address + HALF, mask=inside, other=0.0).to(tl.float32)
    is_query = head < NUM_HEADS
    is_value = head >= NUM_HEADS + NUM_KV_HEADS
    if NORMED:
        root = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / WIDTH + eps)[:, None]
        of_query = tl.load(query_norm + dim, mask=in_half, other=0.0).to(tl.float32)
        of_key = tl.load(key_norm + dim, mask=in_half, other=0.0).to(tl.float32)
        x = tl.where(is_value, x, x * root * tl.where(is_query, of_query, of_key))
        of_query = tl.load(query_norm + HALF + dim, mask=in_half, other=0.0).to(tl.float32)
        of_key = tl.load(key_norm + HALF + dim, mask=in_half, other=0.0).to(tl.float32)
        y = tl.where(is_value, y, y * root * tl.where(is_query, of_query, of_key))
    turn = token * WIDTH + dim
    x_cos = tl.load(cos + turn, mask=in_half, other=0.0).to(tl.float32)
    y_cos = tl.load(cos + turn + HALF, mask=in_half, other=0.0).to(tl.float32)
    x_sin = tl.load(sin + turn, mask=in_half, other=0.0).to(tl.float32)
    y_sin = tl.load(sin + turn + HALF, mask=in_half, other=0.0).to(tl.float32)
    turned_x = tl.where(is_value, x, x * x_cos + y * x_sin)
    turned_y = tl.where(is_value, y, y * y_cos + x * y_sin)
    tl.store(address, turned_x.to(heads.dtype.element_ty), mask=inside & is_query)
    tl.store(address + HALF, turned_y.to(heads.dtype.element_ty), mask=inside & is_query)
    slot = tl.load(slots + token)
    kv_head = tl.where(is_value, head - NUM_HEADS - NUM_KV_HEADS, head - NUM_HEADS)
    plane = tl.where(is_value, values, 0)
    target = cache + plane + (slot + kv_head * BLOCK_SIZE).to(tl.int64) * WIDTH + dim
    if SATURATES:
        turned_x = tl.minimum(tl.maximum(turned_x, -448.0), 448.0)
        turned_y = tl.minimum(tl.maximum(turned_y, -448.0), 448.0)
    written = inside & (head >= NUM_HEADS)
    # Padding rows of the batch have no slot.
    if slot >= 0:
        tl.store(target, turned_x.to(cache.dtype.element_ty), mask=written)
        tl.store(target + HALF, turned_y.to(cache.dtype.element_ty), mask=written)
