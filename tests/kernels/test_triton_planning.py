"""What the kernels read about a step: every visible key exactly once, every token in its slot, and few sizes."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from capstan_engine.block_table import block_table
from capstan_engine.kernels import KvLayout, Span
from capstan_engine.kernels.triton import new_stage, plan_attention, plan_decodes, round_up
from capstan_engine.kernels.triton.planning import TritonPlan
from capstan_engine.kernels.triton.tiles import Shape, prefill_tile
from capstan_engine.pieces import MOST_PIECES, most_pieces, piece_length

LAYOUT = KvLayout(1 << 14, 2, 16)


def plan(contexts: list[int], chunks: list[tuple[int, int]], window: int | None) -> TritonPlan:
    spans = [Span(start, length, block_table(range(1, 2 + (start + length) // 16))) for start, length in chunks]
    decodes = [Span(context - 1, 1, block_table(range(2 + context // 16))) for context in contexts]
    stage = new_stage()
    made = plan_attention([*decodes, *spans], LAYOUT, [window], torch.bfloat16, stage)[window]
    stage.send()
    return made


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


@given(st.integers(1, 40_000), st.integers(1, 40_000), st.none() | st.integers(1, 40_000))
def test_no_context_has_more_pieces_than_there_is_room_for(context: int, more: int, window: int | None) -> None:
    decodes = plan([context], [], window).decodes
    assert decodes is not None
    assert len(decodes.pieces) <= most_pieces(context + more, window) <= MOST_PIECES


@given(st.lists(st.integers(1, 600), min_size=1, max_size=8), st.lists(st.integers(1, 600), min_size=1, max_size=8))
def test_steps_of_as_many_rows_lie_at_the_same_addresses(first: list[int], second: list[int]) -> None:
    """From the second on, when the stage has grown as far as it has to; and the contexts are those of the step."""
    stage, windows = new_stage(), (None, 100)
    addresses = []
    for contexts in ([1], first, second):
        longest_first = sorted(contexts, reverse=True)
        spans = [Span(context - 1, 1, block_table(range(1 + context // 16))) for context in longest_first]
        plans = plan_decodes(spans, LAYOUT, windows, stage, 8, 600)
        last = stage.put(np.zeros(1))
        stage.send()
        tensors = [last]
        for window, made in plans.items():
            assert made.decodes is not None
            _, tables, pieces, first_pieces = made.decodes
            tensors += [made.slots, tables, pieces, first_pieces]
            ends = [int(pieces[end - 1, 2]) for end in first_pieces[1 : len(spans) + 1].tolist()]
            assert ends == longest_first
            # Nothing for the rows of padding.
            assert first_pieces[len(spans) :].tolist() == [first_pieces[len(spans)]] * (9 - len(spans))
            assert window is None or pieces[0, 1] == max(0, ends[0] - window)
        addresses.append([tensor.data_ptr() for tensor in tensors])
    assert addresses[1] == addresses[2]


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
        lengths = np.diff(made.chunks.first_rows.tolist()).tolist()
        assert made.chunks.first_rows[0] == num_decodes
        assert list(zip(made.chunks.starts.tolist(), lengths, strict=True)) == chunks


@given(st.integers(1, 5000))
def test_few_numbers_of_rows_are_computed(num: int) -> None:
    assert num <= round_up(num) < num + 8
    assert round_up(round_up(num)) == round_up(num)


def test_a_gpu_with_little_shared_memory_gets_a_smaller_tile() -> None:
    large, small = (prefill_tile(Shape(128, 2), shared) for shared in (227 << 10, 163 << 10))
    assert large.keys > small.keys
