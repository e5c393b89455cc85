"""From spans of requests to the numbers that the attention kernels read on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from capstan_engine.kernels.plan import AttentionPlan, KvLayout, Span
from capstan_engine.kernels.stage import Stage
from capstan_engine.kernels.triton.rounding import round_up
from capstan_engine.pieces import most_pieces, piece_length

Ints = NDArray[np.int32]


class Decodes(NamedTuple):
    """Single-token spans, the first rows of the step."""

    num_rows: int
    tables: torch.Tensor
    """`[R, W]`: block tables, padded."""
    pieces: torch.Tensor
    """`[P, 3]`: row, first key, key after the last. Every visible key of every row lies in exactly one piece."""
    first_pieces: torch.Tensor
    """`[R + 1]`: where each row's pieces begin; behind the last of `pieces` there may be room."""


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
    spans: Sequence[Span], layout: KvLayout, windows: Sequence[int | None], dtype: torch.dtype, stage: Stage
) -> dict[int | None, TritonPlan]:
    """One plan for each of `windows`. Spans of one token must come first. Plans are the same for every `dtype`."""
    num = next((i for i, span in enumerate(spans) if span.length > 1), len(spans))
    decodes, chunks = spans[:num], spans[num:]
    cuts = [_pieces([span.start + 1 for span in decodes], window) for window in windows]
    slots = stage.put(_slots(spans, layout, round_up(sum(span.length for span in spans))))
    width = max(len(span.block_table) for span in spans)
    tables = stage.put(_tables(spans, len(spans), width))
    first_rows = stage.put(_running_total([num, *(span.length for span in chunks)]))
    starts = stage.put(np.array([span.start for span in chunks], np.int32))
    prefill = Chunks(len(chunks), tables[num:], first_rows, starts)
    return {
        window: TritonPlan(
            window,
            slots,
            Decodes(num, tables[:num], stage.put(pieces), stage.put(first_pieces)) if decodes else None,
            prefill if chunks else None,
        )
        for window, (pieces, first_pieces) in zip(windows, cuts, strict=True)
    }


def plan_decodes(
    spans: Sequence[Span],
    layout: KvLayout,
    windows: Sequence[int | None],
    stage: Stage,
    num_rows: int,
    max_context: int,
) -> dict[int | None, TritonPlan]:
    """`plan_attention` for spans of one token, in arrays whose sizes depend on `num_rows` and `max_context` alone.

    Rows without a span attend to nothing and write nothing.
    """
    slots = stage.put(_slots(spans, layout, num_rows))
    tables = stage.put(_tables(spans, num_rows, -(-max_context // layout.block_size)))
    plans = {}
    for window in windows:
        pieces, first_pieces = _pieces([span.start + 1 for span in spans], window)
        room = np.zeros((num_rows * most_pieces(max_context, window), 3), np.int32)
        room[: len(pieces)] = pieces
        firsts = np.pad(first_pieces, (0, num_rows - len(spans)), "edge")
        decodes = Decodes(num_rows, tables, stage.put(room), stage.put(firsts))
        plans[window] = TritonPlan(window, slots, decodes, None)
    return plans


def _slots(spans: Sequence[Span], layout: KvLayout, num_rows: int) -> Ints:
    """Padding rows of the batch have no slot."""
    size = layout.block_size
    slots = np.full(num_rows, -1, np.int32)
    row, stride = 0, layout.num_kv_heads * size
    for start, length, table in spans:
        if length == 1:
            slots[row] = table[start // size] * stride + start % size
        else:
            positions = np.arange(start, start + length)
            first = start // size
            blocks = np.array(table[first : (start + length - 1) // size + 1], np.int32)
            slots[row : row + length] = blocks[positions // size - first] * stride + positions % size
        row += length
    return slots


def _tables(spans: Sequence[Span], num_rows: int, width: int) -> Ints:
    tables = np.zeros((num_rows, width), np.int32)
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
