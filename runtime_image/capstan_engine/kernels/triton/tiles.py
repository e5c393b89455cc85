"""How much of a problem one program takes at a time: a table for each kernel, with the shape that justifies each row.

Knows no kernel, only shapes: a row for attention is found by the width of a head, rounded up to 64, 128 or 256, and the
bytes of a number. 32-bit rows are there for tests of equality: they are computed without tensor cores and need to be
right only.

Every row of every table is compiled ahead of time for each architecture by a test, which refuses registers that spill
and shared memory that does not fit. The choices follow from the sizes of an H200 and from what the compiler made of
them; `tuning` replaces them by measured ones.
"""

from typing import Final, NamedTuple


class Tile(NamedTuple):
    """One launch's sizes."""

    rows: int
    """Rows of the left operand: queries times heads of one KV head."""
    keys: int
    """Keys in one step of the inner loop."""
    num_warps: int
    num_stages: int
    """Depth of the software pipeline. Loads of keys wait for loads of block ids, so half of it are tiles in flight."""


class Shape(NamedTuple):
    """What decides about a tile."""

    width: int
    """Of a head, as the tiles have it: 64, 128 or 256."""
    itemsize: int


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


def shape_of(width: int, itemsize: int) -> Shape:
    """Heads narrower than 64 have the tiles of 64."""
    return Shape(max(64, power_of_two(width)), itemsize)


# Keys and values of one step are 32 KiB in every row, and two steps are in flight: 70 KiB, so that three programs fit
# into the 227 KiB of shared memory of an H200's processor. At its share of the bandwidth, 33 KB/µs, and a latency of
# 0.7 µs, 23 KB in flight would do; the rest is for programs that are computing or between two pieces. Sixteen rows are
# the fewest that a matrix instruction takes.
DECODE: Final = {
    Shape(64, 2): Tile(rows=16, keys=128, num_warps=4, num_stages=5),  # Llama-3.2-1B: 32/8 heads
    Shape(128, 2): Tile(rows=16, keys=64, num_warps=4, num_stages=5),  # Llama-3-8B: 32/8 heads, 32 contexts of 4K keys
    Shape(256, 2): Tile(rows=16, keys=32, num_warps=4, num_stages=5),  # Gemma-2-9B: 16/8 heads
    Shape(64, 4): Tile(rows=16, keys=64, num_warps=4, num_stages=3),
    Shape(128, 4): Tile(rows=16, keys=32, num_warps=4, num_stages=3),
    Shape(256, 4): Tile(rows=16, keys=16, num_warps=4, num_stages=3),
}
DECODE_PROGRAMS: Final = 3
"""On one processor; see above."""


LARGE: Final = 227 << 10
"""Shared memory of a program on sm_90 and sm_100; sm_80 has 163 KiB, sm_86 and sm_89 have 99."""

# One tile for long and short steps alike: the order in which a row is summed depends on the tile, so a smaller one for
# short chunks, which has more programs to offer, would make a prompt's numbers depend on what else is in the step.
# Attention is a small part of a short step anyway. Of two tiles the first is for GPUs with `LARGE` shared memory.
PREFILL: Final = {
    Shape(64, 2): (Tile(rows=128, keys=64, num_warps=8, num_stages=5),),
    Shape(128, 2): (
        # Llama-3-8B, 32/8 heads: 1,024 tokens are 256 tiles for 132 processors. 64 rows for each of two warp groups;
        # 256 rows would leave no registers for the scores.
        Tile(rows=128, keys=64, num_warps=8, num_stages=5),
        # Qwen2-7B, 28/4 heads: with 64 keys it spills on sm_80.
        Tile(rows=128, keys=32, num_warps=8, num_stages=5),
    ),
    Shape(256, 2): (
        # Gemma-2-9B, 16/8 heads. 128 rows spill on sm_80 and sm_100.
        Tile(rows=64, keys=32, num_warps=8, num_stages=5),
        Tile(rows=64, keys=32, num_warps=8, num_stages=3),
    ),
    Shape(64, 4): (Tile(rows=32, keys=32, num_warps=4, num_stages=3),),
    Shape(128, 4): (Tile(rows=32, keys=32, num_warps=4, num_stages=3),),
    Shape(256, 4): (Tile(rows=16, keys=16, num_warps=4, num_stages=3),),
}


def prefill_tile(shape: Shape, shared_bytes: int) -> Tile:
    """The tile for a GPU whose programs may have so much shared memory."""
    tiles = PREFILL[shape]
    return tiles[0] if shared_bytes >= LARGE else tiles[-1]


class GemmTile(NamedTuple):
    """One launch's sizes of a matrix product."""

    rows: int
    outputs: int
    inputs: int
    """In one step of the inner loop."""
    num_warps: int
    num_stages: int


MOST_GEMM_ROWS: Final = 256
"""With more rows a product is bound by arithmetic, and cuBLAS's."""

# To be measured against each other and against cuBLAS; none is used without. Each fits the 99 KiB of an sm_86 and
# sm_89. An H200's 132 processors want 132 programs: of the narrowest weight of Llama-3-8B, 4096 outputs, 32 a tile.
GEMM: Final = (
    GemmTile(rows=16, outputs=16, inputs=256, num_warps=4, num_stages=5),
    GemmTile(rows=16, outputs=32, inputs=128, num_warps=4, num_stages=6),
    GemmTile(rows=16, outputs=64, inputs=128, num_warps=4, num_stages=4),
    GemmTile(rows=32, outputs=32, inputs=128, num_warps=4, num_stages=5),
    GemmTile(rows=32, outputs=64, inputs=128, num_warps=4, num_stages=4),
    GemmTile(rows=64, outputs=32, inputs=128, num_warps=4, num_stages=4),
    GemmTile(rows=64, outputs=64, inputs=64, num_warps=4, num_stages=5),
    GemmTile(rows=128, outputs=64, inputs=64, num_warps=8, num_stages=4),
    GemmTile(rows=128, outputs=128, inputs=64, num_warps=8, num_stages=3),
)


def gemm_rows(num_rows: int) -> int:
    """The measured number of rows that stands for this one: a tile has at least 16, and one alone is a special case."""
    return 1 if num_rows == 1 else max(16, power_of_two(num_rows))
