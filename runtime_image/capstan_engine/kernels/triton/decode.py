"""Attention of single queries, each context cut into pieces that many programs read at once, then put together.

Bound by memory: every key and value is read once, by the one program that serves all query heads of its KV head.
The grid is fixed; its programs take pieces from a list on the device until there is none left, so that one CUDA graph
serves any contexts. The putting together (log-sum-exp weights) is a kernel of its own, since it waits for all pieces.
Algorithm: Flash-Decoding (Dao, Haziza, Massa and Sizov, 2023).
"""

import torch
import triton
import triton.language as tl

from capstan_engine.kernels.triton.attend import LOG2_E, attend
from capstan_engine.kernels.triton.machine import num_processors
from capstan_engine.kernels.triton.planning import Decodes
from capstan_engine.kernels.triton.tiles import DECODE_PROGRAMS, Tile, power_of_two
from capstan_engine.pieces import MOST_PIECES


def decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: Decodes,
    out: torch.Tensor,
    scale: float,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    tile: Tile,
) -> None:
    """`q` `[R, H, D]`, `cache` `[2, N, G, B, D]`; into `out` `[R, H·D]`."""
    _, num_heads, width = q.shape
    num_kv_heads, block_size = cache.shape[2:4]
    heads = num_heads // num_kv_heads
    num_pieces = plan.pieces.shape[0]
    partial = torch.empty(num_pieces, num_heads, width, dtype=torch.float32, device=q.device)
    log_sums = torch.empty(num_pieces, num_heads, dtype=torch.float32, device=q.device)
    programs = -(-DECODE_PROGRAMS * num_processors() // num_kv_heads)
    decode_kernel[(programs, num_kv_heads)](
        q,
        cache,
        plan.tables,
        plan.pieces,
        plan.first_pieces[-1:],
        partial,
        log_sums,
        scale,
        soft_cap or 0.0,
        q.stride(0),
        plan.tables.stride(0),
        cache.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        HEADS=heads,
        WIDTH=width,
        BLOCK_SIZE=block_size,
        CAPPED=soft_cap is not None,
        BLOCK_H=max(tile.rows, power_of_two(heads)),
        BLOCK_N=tile.keys,
        BLOCK_D=max(16, power_of_two(width)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    combine_kernel[(plan.num_rows, num_heads)](
        partial,
        log_sums,
        plan.first_pieces,
        sinks,
        out,
        WIDTH=width,
        SINKS=sinks is not None,
        MOST_PIECES=MOST_PIECES,
        BLOCK_P=16,
        BLOCK_D=max(16, power_of_two(width)),
        num_warps=1,
    )


# What depends on the batch must not make a kernel of its own: each would be compiled in the middle of serving.
@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["tables", "num_pieces"])
def decode_kernel(
    q: tl.tensor,
    cache: tl.tensor,
    tables: tl.tensor,
    pieces: tl.tensor,
    num_pieces: tl.tensor,
    partial: tl.tensor,
    log_sums: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    q_stride: tl.tensor,
    table_stride: tl.tensor,
    values: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid `(any, G)`. `partial` `[P, H, D]` float32: attention within each piece; `log_sums` `[P, H]`, base 2."""
    kv_head = tl.program_id(1)
    head = tl.arange(0, BLOCK_H)
    dims = tl.arange(0, BLOCK_D)
    inside = (head < HEADS)[:, None] & (dims < WIDTH)[None, :]
    rows = (kv_head * HEADS + head)[:, None] * WIDTH + dims[None, :]
    for piece in range(tl.program_id(0), tl.load(num_pieces), tl.num_programs(0)):
        row = tl.load(pieces + 3 * piece)
        begin = tl.load(pieces + 3 * piece + 1)
        end = tl.load(pieces + 3 * piece + 2)
        queries = tl.load(q + row.to(tl.int64) * q_stride + rows, mask=inside, other=0.0)
        table = tables + row.to(tl.int64) * table_stride
        acc = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
        largest = tl.full([BLOCK_H], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_H], tl.float32)
        # Tiles at multiples of their size, so that a page is not cut in two.
        for first in range(begin // BLOCK_N * BLOCK_N, end, BLOCK_N):
            keys = first + tl.arange(0, BLOCK_N)
            held = (keys >= begin) & (keys < end)
            acc, largest, total = attend(
                acc,
                largest,
                total,
                queries,
                cache,
                values,
                table,
                kv_head,
                keys,
                held,
                held[None, :],
                scale,
                soft_cap,
                NUM_KV_HEADS,
                WIDTH,
                BLOCK_SIZE,
                CAPPED,
                True,
                BLOCK_D,
            )
        first_head = tl.cast(piece, tl.int64) * (NUM_KV_HEADS * HEADS)
        tl.store(partial + first_head * WIDTH + rows, acc / total[:, None], mask=inside)
        log_sum = largest + tl.log2(total)
        tl.store(log_sums + first_head + kv_head * HEADS + head, log_sum, mask=head < HEADS)


@triton.jit
def combine_kernel(
    partial: tl.tensor,
    log_sums: tl.tensor,
    first_pieces: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    WIDTH: tl.constexpr,
    SINKS: tl.constexpr,
    MOST_PIECES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid `(R, H)`: the mean of a row's pieces, weighted with their sums. `out` is `[R, H·D]`."""
    row, head, num_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    dims = tl.arange(0, BLOCK_D)
    first = tl.load(first_pieces + row)
    num_pieces = tl.load(first_pieces + row + 1) - first
    first_sum = log_sums + first.to(tl.int64) * num_heads + head
    all_pieces = tl.arange(0, MOST_PIECES)
    all_sums = tl.load(first_sum + all_pieces * num_heads, mask=all_pieces < num_pieces, other=float("-inf"))
    largest = tl.where(num_pieces > 0, tl.max(all_sums, 0), 0.0)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        largest = tl.maximum(largest, sink)
    total = tl.sum(tl.exp2(all_sums - largest), 0)
    if SINKS:
        total += tl.exp2(sink - largest)
    # A row without pieces pads the batch; what it gets is never looked at, but is a number.
    total = tl.where(num_pieces > 0, total, 1.0)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for begin in range(0, num_pieces, BLOCK_P):
        piece = begin + tl.arange(0, BLOCK_P)
        exists = piece < num_pieces
        sums = tl.load(first_sum + piece * num_heads, mask=exists, other=float("-inf"))
        rows = ((first + piece).to(tl.int64) * num_heads + head) * WIDTH
        inside = exists[:, None] & (dims < WIDTH)[None, :]
        parts = tl.load(partial + rows[:, None] + dims[None, :], mask=inside, other=0.0)
        acc += tl.sum(parts * tl.exp2(sums - largest)[:, None], 0)
    row_out = out + (row.to(tl.int64) * num_heads + head) * WIDTH
    tl.store(row_out + dims, (acc / total).to(out.dtype.element_ty), mask=dims < WIDTH)
