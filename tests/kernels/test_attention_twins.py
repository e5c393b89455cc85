"""Paged attention in Triton against plain torch: awkward shapes, NaN wherever nothing may be read or is forgotten."""

from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch

from capstan_engine.kernels import reference, triton
from capstan_engine.kernels.triton.machine import DEVICE
from kernels.paged import Paged, paged

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Heads:
    """Query heads, KV heads and their width."""

    queries: int
    kv: int
    width: int


def in_triton(
    case: Paged, window: int | None, soft_cap: float | None = None, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    plan = case.plan(triton, case.cache.dtype, window)
    # Strided, as the queries within a projection are.
    apart = torch.full((len(case.queries) + 1, case.queries.shape[1] + 3, case.queries.shape[2]), float("nan"))
    apart = apart.to(case.queries.dtype)
    apart[:-1, : case.queries.shape[1]] = case.queries
    queries = apart.to(DEVICE)[:, : case.queries.shape[1]]
    sinks = None if sinks is None else sinks.to(DEVICE)
    scale = case.queries.shape[-1] ** -0.5
    out = triton.attention(queries, case.cache.to(DEVICE), plan, scale, soft_cap=soft_cap, sinks=sinks)
    return out[: len(case.queries)].float().cpu()


def check(
    case: Paged,
    window: int | None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    plan = case.plan(reference, torch.float32, window)
    scale = case.queries.shape[-1] ** -0.5
    expected = reference.attention(
        case.queries.float(),
        case.clean,
        plan,
        scale,
        soft_cap=soft_cap,
        sinks=None if sinks is None else sinks.float(),
    )
    tolerance = tolerance or TOLERANCE[case.queries.dtype]
    torch.testing.assert_close(in_triton(case, window, soft_cap, sinks), expected, rtol=tolerance, atol=tolerance)


DECODES = [(0, 1), (15, 1), (16, 1), (37, 1)]
CHUNKS = [(0, 21), (13, 2), (16, 16), (30, 5)]


@pytest.mark.parametrize("lengths", [DECODES, CHUNKS, [(40, 1), (3, 1), (20, 3)]], ids=["decodes", "chunks", "mixed"])
@pytest.mark.parametrize(
    ("heads", "block_size"),
    [
        pytest.param(Heads(4, 4, 16), 16, id="one-query-head"),
        pytest.param(Heads(14, 2, 64), 8, id="seven-query-heads"),
        pytest.param(Heads(6, 1, 24), 3, id="one-kv-head-odd-sizes"),
    ],
)
def test_heads_widths_and_blocks(
    heads: Heads, block_size: int, lengths: list[tuple[int, int]], generator: torch.Generator
) -> None:
    case = paged(
        lengths,
        num_heads=heads.queries,
        num_kv_heads=heads.kv,
        width=heads.width,
        block_size=block_size,
        dtype=torch.float32,
        generator=generator,
    )
    check(case, None)


def test_16_bit_numbers(generator: torch.Generator) -> None:
    check(grouped([(40, 1), (3, 1), (20, 3), (0, 30)], generator, torch.float16), None)


def grouped(lengths: list[tuple[int, int]], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Paged:
    return paged(lengths, num_heads=4, num_kv_heads=2, width=16, block_size=4, dtype=dtype, generator=generator)


@pytest.mark.parametrize("window", [1, 7, 33, 500])
@pytest.mark.parametrize("lengths", [DECODES, [(0, 40), (50, 3), (90, 1)]], ids=["decodes", "mixed"])
def test_a_sliding_window_hides_what_lies_before_it(
    lengths: list[tuple[int, int]], window: int, generator: torch.Generator
) -> None:
    check(grouped(lengths, generator), window)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_soft_caps_and_sinks(soft_cap: float | None, window: int | None, generator: torch.Generator) -> None:
    sinks = torch.randn(4, generator=generator) * 3
    check(grouped([(2, 1), (35, 1), (0, 9), (30, 2)], generator), window, soft_cap, sinks)


def test_contexts_of_several_pieces_are_put_together(generator: torch.Generator) -> None:
    sinks = torch.randn(4, generator=generator)
    check(grouped([(255, 1), (256, 1), (700, 1), (5, 1)], generator), None, None, sinks)
    check(grouped([(900, 1)], generator), 300)


def test_scores_that_would_overflow_do_not(generator: torch.Generator) -> None:
    case = grouped([(20, 1), (0, 12)], generator)
    case.cache[0] *= 300
    # The error of a score in the thousands is one of the exponent.
    check(case, None, tolerance=2e-3)


def test_a_cache_of_8_bit_floats_is_read_as_what_it_holds(generator: torch.Generator) -> None:
    case = grouped([(40, 1), (10, 9)], generator)
    small = case.cache.to(torch.float8_e4m3fn)
    expected = in_triton(Paged(case.spans, case.layout, case.queries, small.float()), None)
    torch.testing.assert_close(in_triton(Paged(case.spans, case.layout, case.queries, small), None), expected)


@pytest.mark.parametrize("window", [None, 30])
def test_a_request_is_summed_alike_in_every_batch(window: int | None, generator: torch.Generator) -> None:
    """Bit for bit: what stands beside a request decides neither its pieces nor the order of its sums."""
    case = grouped([(600, 1), (300, 1), (40, 1), (0, 30), (20, 50)], generator)
    together = in_triton(case, window)
    ends = list(accumulate(span.length for span in case.spans))
    for span, end in zip(case.spans, ends, strict=True):
        rows = slice(end - span.length, end)
        alone = in_triton(Paged([span], case.layout, case.queries[rows], case.cache), window)
        assert torch.equal(alone, together[rows])


def test_a_prompt_in_chunks_is_summed_as_in_one(generator: torch.Generator) -> None:
    case = grouped([(0, 60)], generator)
    [(_, _, table)] = case.spans
    whole = in_triton(case, None)
    for start, end in [(0, 17), (17, 19), (19, 60)]:
        span = case.spans[0]._replace(start=start, length=end - start, block_table=table)
        part = in_triton(Paged([span], case.layout, case.queries[start:end], case.cache), None)
        # Not bit for bit in the interpreter, whose matrix product depends on a row's place in the matrix.
        torch.testing.assert_close(part, whole[start:end], rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("heads", [Heads(32, 8, 128), Heads(28, 4, 128), Heads(64, 8, 64), Heads(16, 8, 256)], ids=str)
@pytest.mark.parametrize("window", [None, 1000])
def test_in_full(heads: Heads, dtype: torch.dtype, window: int | None, generator: torch.Generator) -> None:
    lengths = [(4095, 1), (20_000, 1), (1, 1), (700, 1), (0, 1024), (3000, 300), (16, 17)]
    case = paged(
        lengths,
        num_heads=heads.queries,
        num_kv_heads=heads.kv,
        width=heads.width,
        block_size=16,
        dtype=dtype,
        generator=generator,
    )
    check(case, window, sinks=torch.randn(heads.queries, generator=generator))
