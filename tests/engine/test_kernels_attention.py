"""Paged attention against the textbook, in awkward shapes, with garbage wherever nothing may be read."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_engine import kernels
from capstan_engine.block_table import block_table
from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import Kernels, KvLayout, Span, reference
from capstan_engine.kernels.reference.elementwise import rotate
from capstan_engine.kernels.reference.rounding import round_up
from capstan_engine.kernels.stage import HostStage

NUM_HEADS, NUM_KV_HEADS, WIDTH, NUM_BLOCKS = 6, 2, 8, 96
BACKEND: Kernels = kernels.choose()


def naive(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, window: int | None) -> torch.Tensor:
    """`q` `[n, H, D]` at positions `start ..` over `keys`, `values` `[L, G, D]`, query by query and head by head."""
    out = torch.empty_like(q)
    for i in range(q.shape[0]):
        last = start + i
        first = 0 if window is None else max(0, last - window + 1)
        for head in range(NUM_HEADS):
            group = head // (NUM_HEADS // NUM_KV_HEADS)
            scores = keys[first : last + 1, group] @ q[i, head] / math.sqrt(WIDTH)
            out[i, head] = torch.softmax(scores, 0) @ values[first : last + 1, group]
    return out


def check(spans_: list[tuple[int, int]], size: int, window: int | None, dtype: torch.dtype, seed: int = 0) -> None:
    """Each `(start, length)` is one request; its earlier keys and values are in the cache already."""
    generator = torch.Generator().manual_seed(seed)
    order = sorted(spans_, key=lambda span: (span[1] > 1, -span[0]))
    layout = KvLayout(NUM_BLOCKS, NUM_KV_HEADS, size)
    # NaN everywhere: a block that belongs to nobody must not be read, not even to be masked.
    cache = torch.full((2, *layout, WIDTH), math.nan, dtype=dtype)
    free = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    spans, new_kv, queries, expected = [], [], [], []
    for start, length in order:
        end = start + length
        table = [free.pop() for _ in range(-(-end // size))]
        kv = torch.randn(2, end, NUM_KV_HEADS, WIDTH, generator=generator).to(dtype)
        cache[:, table] = 0  # what the runner does before it uses a block
        for position in range(start):
            cache[:, table[position // size], :, position % size] = kv[:, position]
        q = torch.randn(length, NUM_HEADS, WIDTH, generator=generator).to(dtype)
        spans.append(Span(start, length, block_table(table)))
        new_kv.append(kv[:, start:].transpose(0, 1).flatten(1, 2))
        queries.append(q)
        expected.append(naive(q.float(), kv[0].float(), kv[1].float(), start, window))
    plan = BACKEND.plan_attention(spans, layout, [window], dtype, BACKEND.new_stage())[window]
    padding = torch.full((3, NUM_HEADS + 2 * NUM_KV_HEADS, WIDTH), math.nan, dtype=dtype)
    heads = torch.cat((torch.cat((torch.cat(queries), torch.cat(new_kv)), 1), padding))
    cos, sin = torch.ones(len(heads), 1, WIDTH, dtype=dtype), torch.zeros(len(heads), 1, WIDTH, dtype=dtype)
    BACKEND.rotate_and_write_kv(heads, cos, sin, None, cache, plan)
    out = BACKEND.attention(heads[:, :NUM_HEADS], cache, plan, WIDTH**-0.5)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    num_tokens = sum(length for _, length in order)
    torch.testing.assert_close(out[:num_tokens].float(), torch.cat(expected).flatten(1), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize(
    "spans",
    [
        [(0, 1)],
        [(37, 1), (0, 1), (15, 1), (16, 1), (31, 1)],
        [(0, 130)],
        [(60, 70), (3, 2)],
        [(200, 1), (5, 1), (0, 17), (64, 64), (100, 1)],
    ],
)
def test_paged_attention_equals_the_textbook(
    spans: list[tuple[int, int]], window: int | None, dtype: torch.dtype
) -> None:
    check(spans, 16, window, dtype)


@settings(max_examples=40)
@given(
    spans=st.lists(st.tuples(st.integers(0, 60), st.sampled_from([1, 1, 1, 2, 7, 40])), min_size=1, max_size=5),
    size=st.sampled_from([3, 8, 16]),
    window=st.sampled_from([None, 2, 11]),
)
def test_any_mix_of_decodes_and_chunks_is_computed_right(
    spans: list[tuple[int, int]], size: int, window: int | None
) -> None:
    budget = sum(-(-(start + length) // size) for start, length in spans)
    if budget <= NUM_BLOCKS:
        check(spans, size, window, torch.float32)


def test_very_different_lengths_are_not_padded_to_the_longest() -> None:
    """A group pads its shortest to at most twice its length, once it is large enough to matter."""
    spans = [Span(8000 - i, 1, block_table(range(501))) for i in range(2)] + [Span(40, 1, block_table([0, 1, 2]))] * 30
    plan = reference.plan_attention(spans, KvLayout(512, 2, 16), [None], torch.float32, HostStage())[None]
    assert len(plan.decodes) == 2
    assert [group.num_sequences for group in plan.decodes] == [2, 30]
    assert plan.decodes[1].mask.shape[-1] == 64


@given(st.integers(1, 100_000))
def test_rounding_up_adds_at_most_a_quarter_and_never_takes_away(size: int) -> None:
    rounded = round_up(size)
    assert size <= rounded <= max(size, 1.25 * size)
    assert round_up(rounded) == rounded
    assert round_up(size + 1) >= rounded


def test_rounded_sizes_are_few() -> None:
    assert len({round_up(size) for size in range(1, 2049)}) <= 41


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 33])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_packed_linear_layer_multiplies_like_a_plain_one(dtype: torch.dtype, rows: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 48, generator=generator).to(dtype)
    weight = torch.randn(40, 48, generator=generator).to(dtype)
    bias = torch.randn(40, generator=generator).to(dtype) if with_bias else None
    expected = x.float() @ weight.float().T + (0 if bias is None else bias.float())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    with torch.inference_mode():
        actual = BACKEND.pack_linear(weight, bias)(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=10 * tolerance)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    angles = torch.arange(50)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    cos = torch.cat((angles.cos(), angles.cos()), -1).unsqueeze(1)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).unsqueeze(1)
    query, key = torch.randn(2, 1, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    queries, keys = query.repeat(50, 1, 1), key.repeat(50, 1, 1)
    rotate(queries, cos, sin)
    rotate(keys, cos, sin)
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(50, 1))
    products = (queries[7:] * keys[:-7]).sum(-1)
    torch.testing.assert_close(products, products[:1].expand_as(products), rtol=1e-4, atol=1e-4)


def test_an_unknown_device_is_named_with_those_that_have_kernels() -> None:
    with pytest.raises(ConfigurationError, match=r"'tpu'.*cpu or cuda"):
        kernels.choose("tpu")
