"""From spans of requests to the index tensors and masks of one step. NumPy: small arrays, no torch overhead.

Every key that is masked still takes part in the products, with weight 0, and 0 · NaN is NaN. So padding never points at
a stranger's block: a span's table is filled up with its own first block.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from capstan_engine.block_table import BlockTable
from capstan_engine.kernels.plan import KvLayout, Span
from capstan_engine.kernels.reference.plan import DecodeGroup, PrefillChunk, ReferencePlan, Tile
from capstan_engine.kernels.reference.rounding import round_up
from capstan_engine.kernels.stage import Stage

Ints = NDArray[np.int64]

_TILE = 64
"""Queries that share one product in prefill: keys beyond the tile's last query are never touched (measured best)."""
_KEY_STEP = 64
"""Numbers of keys are rounded to multiples of this and then to few distinct sizes."""
_SMALL = 4096
"""Keys of a decode group, padding included, below which splitting it costs more than the padding."""


def plan_attention(
    spans: Sequence[Span], layout: KvLayout, windows: Sequence[int | None], dtype: torch.dtype, stage: Stage
) -> dict[int | None, ReferencePlan]:
    """One plan for each of `windows`. Spans of one token must come first, in falling order of `start`."""
    slots = stage.put(_slots(spans, layout))
    num_decodes = next((i for i, span in enumerate(spans) if span.length > 1), len(spans))
    num_tokens = sum(span.length for span in spans)
    return {
        window: ReferencePlan(
            num_tokens,
            slots,
            tuple(_decode_groups(spans[:num_decodes], layout, window, dtype)),
            tuple(_chunks(spans[num_decodes:], num_decodes, layout, window, dtype)),
        )
        for window in windows
    }


def _slots(spans: Sequence[Span], layout: KvLayout) -> Ints:
    """`[T·2G]`: row of every new key and value in the cache seen as `[2·N·G·B, D]`."""
    num_blocks, num_heads, size = layout
    heads = np.arange(num_heads) * size
    planes = np.concatenate((heads, heads + num_blocks * num_heads * size))  # [2G]
    bases = np.empty(sum(span.length for span in spans), np.int64)
    row = 0
    for start, length, table in spans:
        if length == 1:
            bases[row] = table[start // size] * num_heads * size + start % size
        else:
            positions = np.arange(start, start + length)
            first = start // size
            blocks = np.array(table[first : (start + length - 1) // size + 1], np.int64)
            bases[row : row + length] = blocks[positions // size - first] * (num_heads * size) + positions % size
        row += length
    return (bases[:, None] + planes).reshape(-1)


def _gather_rows(blocks: Ints, layout: KvLayout) -> torch.Tensor:
    """Blocks `[S, n]` to `[2·S·G·n]` rows of the cache seen as `[2·N·G, B·D]`: keys of all, then values of all."""
    num_blocks, num_heads, _ = layout
    keys = blocks[:, None, :] * num_heads + np.arange(num_heads)[:, None]  # [S, G, n]
    return torch.from_numpy(np.stack((keys, keys + num_blocks * num_heads)).reshape(-1))


def _first_block(start: int, window: int | None, size: int) -> int:
    """The first block that the query at position `start` can see."""
    return 0 if window is None else max(0, start - window + 1) // size


def _num_blocks(num_keys: int, size: int) -> int:
    """Blocks to gather for `num_keys`, rounded so that few distinct numbers of keys occur."""
    step = max(1, _KEY_STEP // size)
    return round_up(-(-num_keys // (step * size))) * step


def _table(blocks: BlockTable, num: int) -> BlockTable:
    """Exactly `num` blocks: the first ones, or all and then the first again and again."""
    return blocks[:num] if len(blocks) >= num else blocks + blocks[:1] * (num - len(blocks))


def _decode_groups(
    spans: Sequence[Span], layout: KvLayout, window: int | None, dtype: torch.dtype
) -> Iterator[DecodeGroup]:
    """Groups of similar length: none pads its shortest to more than twice its length, unless it is small anyway."""
    size = layout.block_size
    visible = [span.start + 1 - _first_block(span.start, window, size) * size for span in spans]
    first = 0
    while first < len(spans):
        longest = _num_blocks(max(visible[first:]) if window else visible[first], size)
        last = first + 1
        while last < len(spans) and (2 * visible[last] >= longest * size or (last - first) * longest * size < _SMALL):
            last += 1
        yield _decode_group(first, spans[first:last], longest, layout, window, dtype)
        first = last


def _decode_group(
    first: int, spans: Sequence[Span], num: int, layout: KvLayout, window: int | None, dtype: torch.dtype
) -> DecodeGroup:
    size = layout.block_size
    padded = round_up(len(spans), 2)
    # Rows of padding sequences stay at block 0: what they compute is thrown away.
    blocks = np.zeros((padded, num), np.int64)
    skipped = np.zeros((padded, 1), np.int64)
    contexts = np.ones((padded, 1), np.int64)
    for row, (start, _, table) in enumerate(spans):
        skip = _first_block(start, window, size)
        blocks[row] = _table(table[skip : start // size + 1], num)
        skipped[row] = skip * size
        contexts[row] = start + 1
    keys = skipped + np.arange(num * size)
    hidden = keys >= contexts
    if window is not None:
        hidden |= keys < contexts - window
    mask = _additive(hidden, dtype).repeat_interleave(layout.num_kv_heads, 0).unsqueeze(1)
    return DecodeGroup(first, len(spans), _gather_rows(blocks, layout), mask)


def _chunks(
    spans: Sequence[Span], first_row: int, layout: KvLayout, window: int | None, dtype: torch.dtype
) -> Iterator[PrefillChunk]:
    size = layout.block_size
    row = first_row
    for start, length, table in spans:
        skip = _first_block(start, window, size)
        tiles = []
        for offset in range(0, length, _TILE):
            queries = min(_TILE, length - offset)
            tiles.append(_tile(row + offset, start + offset, queries, skip, size, window, dtype))
        num = tiles[-1].num_keys // size
        blocks = np.array([_table(table[skip : (start + length - 1) // size + 1], num)], np.int64)
        yield PrefillChunk(_gather_rows(blocks, layout), tuple(tiles))
        row += length


def _tile(
    row: int, position: int, num_queries: int, skip: int, size: int, window: int | None, dtype: torch.dtype
) -> Tile:
    """Queries `position ..` over the keys from block `skip` on."""
    num_keys = _num_blocks(position + num_queries - skip * size, size) * size
    width = next(w for w in (16, 32, 64) if w >= num_queries)
    # Without a window every key up to the tile's first query is visible to all of it and needs no mask.
    first_key = position if window is None else skip * size
    keys = np.arange(first_key, skip * size + num_keys)
    queries = np.arange(position, position + width)[:, None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
        # A padding query beyond the gathered keys must see something: a row of -inf would be NaN, to be thrown away.
        hidden[num_queries:] = False
    return Tile(row, num_queries, width, num_keys, _additive(hidden, dtype))


def _additive(hidden: NDArray[np.bool_], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.where(hidden, np.float32(-math.inf), np.float32(0))).to(dtype)
