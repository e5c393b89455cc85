"""What the kernels read about a step: every visible key exactly once, every token in its slot, and few sizes."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from capstan_engine.kernels import KvLayout, Span
from capstan_engine.kernels.triton import plan_attention, round_up
from capstan_engine.kernels.triton.planning import MOST_PIECES, TritonPlan, piece_length
from capstan_engine.kernels.triton.tiles import Shape, prefill_tile

LAYOUT = KvLayout(1 << 14, 2, 16)


def plan(contexts: list[int], chunks: list[tuple[int, int]], window: int | None) -> TritonPlan:
    spans = [Span(start, length, list(range(1, 2 + (start + length) // 16))) for start, length in chunks]
    decodes = [Span(context - 1, 1, list(range(2 + context // 16))) for context in contexts]
    return plan_attention([*decodes, *spans], LAYOUT, [window], torch.bfloat16)[window]


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=6), st.none() | st.integers(1, 40_000))
def test_the_pieces_of_a_context_are_its_visible_keys(contexts: list[int], window: int | None) -> None:
    decodes = plan(contexts, [], window).decodes
    assert decodes is not None
    first = decodes.first_pieces.tolist()
    assert len(first) == len(contexts) + 1
    assert first[-1] == len(decodes.pieces)
    for row, (context, (low, high)) in enumerate(zip(contexts, pairwise(first), strict=True)):
        pieces = decodes.pieces[low:high].tolist()
        assert 1 <= len(pieces) <= MOST_PIECES
        assert all(owner == row and begin < end for owner, begin, end in pieces)
        ends = [end for _, _, end in pieces]
        assert [begin for _, begin, _ in pieces] == [max(0, context - (window or context)), *ends[:-1]]
        assert ends[-1] == context


def test_short_contexts_are_not_cut() -> None:
    assert piece_length(1) == piece_length(256 * MOST_PIECES) == 256
    assert piece_length(256 * MOST_PIECES + 1) == 384


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(2, 90)), max_size=4), st.integers(0, 5))
def test_every_token_has_the_slot_that_its_block_table_says(chunks: list[tuple[int, int]], num_decodes: int) -> None:
    if not chunks and not num_decodes:
        return
    contexts = [17 * (i + 1) for i in range(num_decodes)]
    made = plan(contexts, chunks, None)
    expected = [context - 1 for context in contexts]  # whose tables begin with block 0, those of chunks with block 1
    expected += [16 + position for start, length in chunks for position in range(start, start + length)]
    slots = [slot // 32 * 16 + slot % 16 if slot >= 0 else -1 for slot in made.slots.tolist()]
    assert slots == expected + [-1] * (round_up(len(expected)) - len(expected))
    if chunks:
        assert made.chunks is not None
        lengths = np.diff(made.chunks.first_rows.numpy()).tolist()
        assert made.chunks.first_rows[0] == num_decodes
        assert list(zip(made.chunks.starts.tolist(), lengths, strict=True)) == chunks


@given(st.integers(1, 5000))
def test_few_numbers_of_rows_are_computed(num: int) -> None:
    assert num <= round_up(num) < num + 8
    assert round_up(round_up(num)) == round_up(num)


def test_a_gpu_with_little_shared_memory_gets_a_smaller_tile() -> None:
    large, small = (prefill_tile(Shape(128, 2), shared) for shared in (227 << 10, 163 << 10))
    assert large.keys > small.keys
