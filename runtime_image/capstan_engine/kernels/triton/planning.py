"""From spans of requests to the numbers that the attention kernels read on the device: one small copy per step.

The surprising idea: how a context is cut into pieces for the split-KV kernel depends on its own length and on nothing
else. Cutting for an even load would be a little faster for few requests, but then the same request would be summed in
another order in another batch, and its tokens could change with its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from capstan_engine.kernels.plan import AttentionPlan, KvLayout, Span
from capstan_engine.kernels.triton.machine import to_device
from capstan_engine.kernels.triton.rounding import round_up

Ints = NDArray[np.int32]

MOST_PIECES = 64
"""Pieces of one context: what the combining kernel takes in one go."""
_SHORTEST_PIECE = 256
"""Keys: 128 programs for one request of 4K keys and 8 KV heads, which is an H200's number of processors."""
_STEP = 128
"""Longer pieces are multiples of the largest tile."""


class Decodes(NamedTuple):
    """Single-token spans, the first rows of the step."""

    num_rows: int
    tables: torch.Tensor
    """`[R, W]`: block tables, padded."""
    pieces: torch.Tensor
    """`[P, 3]`: row, first key, key after the last. Every visible key of every row lies in exactly one piece."""
    first_pieces: torch.Tensor
    """`[R + 1]`: where each row's pieces begin; the last is P."""


class Chunks(NamedTuple):
    """Longer spans, in the rows after the decodes."""

    num_rows: int
    tables: torch.Tensor
    """`[R, W]`"""
    first_rows: torch.Tensor
    """`[R + 1]`: where each span's queries begin in the step's flat batch; the last is the end."""
    starts: torch.Tensor
    """`[R]`: position of each span's first query."""


@dataclass(frozen=True, slots=True)
class TritonPlan(AttentionPlan):
    """One step under one sliding window (or none). All tensors are int32, on the device."""

    window: int | None
    slots: torch.Tensor
    """`[T, padding included]`: row of each new key of KV head 0, the keys seen as `[N·G·B, D]`; padding has -1."""
    decodes: Decodes | None
    chunks: Chunks | None


def plan_attention(
    spans: Sequence[Span], layout: KvLayout, windows: Sequence[int | None], dtype: torch.dtype
) -> dict[int | None, TritonPlan]:
    """One plan for each of `windows`. Spans of one token must come first. Plans are the same for every `dtype`."""
    num = next((i for i, span in enumerate(spans) if span.length > 1), len(spans))
    decodes, chunks = spans[:num], spans[num:]
    cuts = [_pieces([span.start + 1 for span in decodes], window) for window in windows]
    slots, tables, first_rows, starts, *pieces = to_device(
        [
            _slots(spans, layout),
            _tables(spans),
            _running_total([num, *(span.length for span in chunks)]),
            np.array([span.start for span in chunks], np.int32),
            *(part for cut in cuts for part in cut),
        ]
    )
    prefill = Chunks(len(chunks), tables[num:], first_rows, starts)
    return {
        window: TritonPlan(
            window,
            slots,
            Decodes(num, tables[:num], pieces[2 * i], pieces[2 * i + 1]) if decodes else None,
            prefill if chunks else None,
        )
        for i, window in enumerate(windows)
    }


def _slots(spans: Sequence[Span], layout: KvLayout) -> Ints:
    """Padding rows of the batch have no slot."""
    size, num_tokens = layout.block_size, sum(span.length for span in spans)
    slots = np.full(round_up(num_tokens), -1, np.int32)
    row = 0
    for start, length, table in spans:
        positions = np.arange(start, start + length)
        first = start // size
        blocks = np.array(table[first : (start + length - 1) // size + 1], np.int32)
        slots[row : row + length] = blocks[positions // size - first] * (layout.num_kv_heads * size) + positions % size
        row += length
    return slots


def _tables(spans: Sequence[Span]) -> Ints:
    tables = np.zeros((len(spans), max(len(span.block_table) for span in spans)), np.int32)
    for row, span in enumerate(spans):
        tables[row, : len(span.block_table)] = span.block_table
    return tables


def _running_total(numbers: Sequence[int]) -> Ints:
    return np.cumsum(numbers, dtype=np.int32)


def _pieces(contexts: Sequence[int], window: int | None) -> tuple[Ints, Ints]:
    """`Decodes.pieces` and `Decodes.first_pieces` for queries that are the last of `contexts` tokens."""
    pieces: list[tuple[int, int, int]] = []
    counts = [0]
    for row, end in enumerate(contexts):
        first = 0 if window is None else max(0, end - window)
        length = piece_length(end - first)
        pieces += ((row, begin, min(begin + length, end)) for begin in range(first, end, length))
        counts.append(len(pieces))
    return np.array(pieces, np.int32).reshape(-1, 3), np.array(counts, np.int32)


def piece_length(num_keys: int) -> int:
    """Keys of one piece, so that there are at most `MOST_PIECES`."""
    even = -(-num_keys // MOST_PIECES)
    return max(_SHORTEST_PIECE, -(-even // _STEP) * _STEP)
