"""Attention of many queries over a paged cache: chunks of prompts, each behind what is cached of its prefix.

Rows of a tile are queries times the heads of one KV head, so that a key that is read serves all of them. The grid is
fixed. What to do is read on the device: the tiles of a chunk are found by a binary search in the chunks' first rows,
each chunk being given one tile more than it may need. Long tiles, those at the end of a chunk, come first, and every
second round of the grid goes backwards, so that no program has all the long ones.
"""

import torch
import triton
import triton.language as tl

from capstan_engine.kernels.triton.attend import LOG2_E, attend
from capstan_engine.kernels.triton.machine import num_processors
from capstan_engine.kernels.triton.planning import Chunks
from capstan_engine.kernels.triton.tiles import Tile, power_of_two


def prefill(
    q: torch.Tensor,
    cache: torch.Tensor,
    plan: Chunks,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    tile: Tile,
) -> None:
    """`q` `[T, H, D]`, `cache` `[2, N, G, B, D]`; into the chunks' rows of `out` `[T, H·D]`."""
    _, num_heads, width = q.shape
    num_kv_heads, block_size = cache.shape[2:4]
    heads = num_heads // num_kv_heads
    block_m = max(tile.rows, power_of_two(heads))
    prefill_kernel[(num_processors(),)](
        q,
        cache,
        plan.tables,
        plan.first_rows,
        plan.starts,
        sinks,
        out,
        scale,
        soft_cap or 0.0,
        window or 0,
        plan.num_rows,
        q.stride(0),
        plan.tables.stride(0),
        cache.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        HEADS=heads,
        WIDTH=width,
        BLOCK_SIZE=block_size,
        WINDOWED=window is not None,
        CAPPED=soft_cap is not None,
        SINKS=sinks is not None,
        BLOCK_M=block_m,
        BLOCK_N=tile.keys,
        BLOCK_D=max(16, power_of_two(width)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


# What depends on the batch must not make a kernel of its own: each would be compiled in the middle of serving.
@triton.jit(do_not_specialize=["window", "num_chunks", "table_stride"], do_not_specialize_on_alignment=["tables"])
def prefill_kernel(
    q: tl.tensor,
    cache: tl.tensor,
    tables: tl.tensor,
    first_rows: tl.tensor,
    starts: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    window: tl.tensor,
    num_chunks: tl.tensor,
    q_stride: tl.tensor,
    table_stride: tl.tensor,
    values: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid `(any,)`. Shapes as in `prefill` and `Chunks`."""
    QUERIES: tl.constexpr = BLOCK_M // HEADS
    row = tl.arange(0, BLOCK_M)
    head = row % HEADS
    dims = tl.arange(0, BLOCK_D)
    first_query = tl.load(first_rows)
    num_items = ((tl.load(first_rows + num_chunks) - first_query) // QUERIES + num_chunks) * NUM_KV_HEADS
    num_programs = tl.num_programs(0)
    for turn in range(tl.cdiv(num_items, num_programs)):
        place = tl.program_id(0)
        if turn % 2 == 1:
            place = num_programs - 1 - place
        item = num_items - 1 - (turn * num_programs + place)
        if item >= 0:
            kv_head = item % NUM_KV_HEADS
            tile = item // NUM_KV_HEADS
            chunk = _chunk_of(tile, first_rows, num_chunks, QUERIES)
            chunk_row = tl.load(first_rows + chunk)
            length = tl.load(first_rows + chunk + 1) - chunk_row
            offset = (tile - (chunk_row - first_query) // QUERIES - chunk) * QUERIES
            if offset < length:
                start = tl.load(starts + chunk)
                query = offset + row // HEADS
                exists = (row < QUERIES * HEADS) & (query < length)
                heads = kv_head * HEADS + head
                inside = exists[:, None] & (dims < WIDTH)[None, :]
                addresses = (chunk_row + query).to(tl.int64) * q_stride + heads * WIDTH
                queries = tl.load(q + addresses[:, None] + dims[None, :], mask=inside, other=0.0)
                acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                if SINKS:
                    largest = tl.load(sinks + heads).to(tl.float32) * LOG2_E
                    total = tl.full([BLOCK_M], 1.0, tl.float32)
                else:
                    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
                    total = tl.zeros([BLOCK_M], tl.float32)
                position = start + query
                end = start + tl.minimum(offset + QUERIES, length)
                table = tables + chunk.to(tl.int64) * table_stride
                if WINDOWED:
                    middle = tl.maximum(start + offset - window + 1, 0) // BLOCK_N * BLOCK_N
                else:
                    # Before the tile's first query all keys are visible to all queries.
                    middle = (start + offset) // BLOCK_N * BLOCK_N
                    for first in range(0, middle, BLOCK_N):
                        keys = first + tl.arange(0, BLOCK_N)
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
                            keys,
                            keys,
                            scale,
                            soft_cap,
                            NUM_KV_HEADS,
                            WIDTH,
                            BLOCK_SIZE,
                            CAPPED,
                            False,
                            BLOCK_D,
                        )
                for first in range(middle, end, BLOCK_N):
                    keys = first + tl.arange(0, BLOCK_N)
                    visible = keys[None, :] <= position[:, None]
                    if WINDOWED:
                        visible = visible & (keys[None, :] > position[:, None] - window)
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
                        keys < end,
                        visible,
                        scale,
                        soft_cap,
                        NUM_KV_HEADS,
                        WIDTH,
                        BLOCK_SIZE,
                        CAPPED,
                        True,
                        BLOCK_D,
                    )
                rows = ((chunk_row + query).to(tl.int64) * (NUM_KV_HEADS * HEADS) + heads) * WIDTH
                # Rows that pad the tile may have seen nothing at all.
                total = tl.where(total == 0, 1.0, total)
                mixed = (acc / total[:, None]).to(out.dtype.element_ty)
                tl.store(out + rows[:, None] + dims[None, :], mixed, mask=inside)


@triton.jit
def _chunk_of(tile: tl.tensor, first_rows: tl.tensor, num_chunks: tl.tensor, QUERIES: tl.constexpr) -> tl.tensor:
    """The last chunk whose tiles begin at `tile` or before."""
    first_query = tl.load(first_rows)
    low, high = num_chunks * 0, num_chunks
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(first_rows + middle) - first_query) // QUERIES + middle <= tile:
            low = middle
        else:
            high = middle
    return low
