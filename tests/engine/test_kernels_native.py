"""Compiled kernels against their twins in plain torch: awkward shapes, fresh inputs, no byte written beyond the end.

At every level of instructions that this processor has.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_engine.block_table import block_table
from capstan_engine.kernels import Draw, KvLayout, QkNorm, Span, native, reference
from capstan_engine.kernels.native import products
from capstan_engine.kernels.native.coding import code, is_worthwhile
from capstan_engine.kernels.stage import HostStage
from compiled_kernels import BF16, EACH_LEVEL, random

pytestmark = EACH_LEVEL


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for roundings to bfloat16, of which the twin does more."""
    torch.testing.assert_close(got.float(), wanted.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(1, 2), (63, 30), (64, 64), (200, 96), (130, 2050)])
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 24, 25, 70])
def test_products(rows: int, shape: tuple[int, int]) -> None:
    weight, bias, x = random(*shape), random(shape[0], seed=1), random(rows, shape[1], seed=2)
    got = native.pack_linear(weight, bias)(x)
    wanted = x.float() @ weight.float().T + bias.float()
    assert got.dtype is BF16
    torch.testing.assert_close(got.float(), wanted, rtol=1e-2, atol=1e-2 * shape[1] ** 0.5)


def test_a_row_of_a_product_does_not_depend_on_those_beside_it() -> None:
    product, x = native.pack_linear(random(80, 1300), None), random(60, 1300, seed=1)
    together = product(x)
    for row in range(len(x)):
        assert torch.equal(product(x[row : row + 1])[0], together[row])


def is_coded(weight: torch.Tensor, *, num_rare: int) -> bool:
    """Whether it is held in 12 bits, with so many weights apart, at those levels where it should be."""
    coded = code(weight)
    return coded is None if not is_worthwhile() else coded is not None and len(coded.rare) == num_rare


@pytest.mark.parametrize("shape", [(1, 2), (63, 30), (64, 1024), (200, 1026), (130, 2050)])
@pytest.mark.parametrize("rows", [1, 6, 7, 70])
def test_weights_in_12_bits_are_the_weights(rows: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit of every product: what has a code is decoded to what it was."""
    # Zeros of both signs, subnormal numbers, and fifteen exponents beside theirs.
    bits = torch.randint(0, 1 << 16, shape, generator=torch.Generator().manual_seed(0))
    exponents = torch.tensor([0, *range(110, 125)])[bits % 16]
    weight = (bits & 0x807F | exponents << 7).to(torch.uint16).view(BF16)
    x = random(rows, shape[1], seed=1)
    assert is_coded(weight, num_rare=0)
    assert torch.equal(native.pack_linear(weight, None)(x), products.pack_uncoded(weight, None)(x))


@pytest.mark.parametrize("rows", [1, 7])
def test_rare_weights_count_as_much_as_others(rows: int) -> None:
    """At either end of a chunk and of a block, and where two inputs of one output are rare."""
    weight, x = random(130, 2050).fill_(1.0), random(rows, 2050, seed=1)
    weight.mul_((-2.0) ** (torch.arange(2050) % 15))
    places = ((0, 0), (0, 1), (63, 1023), (64, 1024), (129, 2049), (77, 1500))
    for exponent, place in enumerate(places, 40):
        weight[place] = 2.0**exponent
    assert is_coded(weight, num_rare=len(places))
    got, wanted = native.pack_linear(weight, None)(x), products.pack_uncoded(weight, None)(x)
    touched = sorted({output for output, _ in places})
    torch.testing.assert_close(got[:, touched], wanted[:, touched], rtol=1e-2, atol=0)
    others = [output for output in range(130) if output not in touched]
    assert torch.equal(got[:, others], wanted[:, others])


def test_weights_with_too_many_exponents_stay_as_they_are() -> None:
    weight = (64 * 128 + torch.arange(1 << 14)).to(torch.uint16).view(BF16).view(128, 128)
    assert code(weight) is None
    x = torch.eye(128, dtype=BF16)
    assert torch.equal(native.pack_linear(weight, None)(x), weight.T.contiguous())


@pytest.mark.parametrize("width", [1, 15, 16, 64, 100, 768])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_norms(rows: int, width: int) -> None:
    x, delta, weight = random(rows, width), random(rows, width, seed=1), random(width, seed=2)
    close(native.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    ours, theirs = x.clone(), x.clone()
    close(native.add_rms_norm(ours, delta, weight, 1e-5), reference.add_rms_norm(theirs, delta, weight, 1e-5))
    assert torch.equal(ours, theirs)


def test_a_norm_takes_rows_of_a_wider_tensor() -> None:
    x, weight = random(4, 6, 32)[:, 2:5], random(32, seed=1)
    close(native.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("width", [1, 17, 96, 1024])
def test_the_gate(width: int) -> None:
    x = random(7, 2 * width) * 4
    close(native.silu_and_mul(x), reference.silu_and_mul(x))


@pytest.mark.parametrize("gate", [-1000.0, -90.0, -88.0, 0.0, 88.0, 1000.0])
def test_the_gate_of_extreme_values_is_finite(gate: float) -> None:
    x = torch.tensor([[gate, 1.0]], dtype=BF16)
    close(native.silu_and_mul(x), reference.silu_and_mul(x))


@pytest.mark.parametrize("call", [native.silu_and_mul, lambda x: native.rms_norm(x, random(64), 1e-5)])
def test_nan_is_passed_on(call: object) -> None:
    x = random(3, 64)
    x[1, 5] = math.nan
    assert callable(call)
    assert call(x).isnan().any(1).tolist() == [False, True, False]


@settings(max_examples=40)
@given(
    spans=st.lists(st.tuples(st.integers(0, 90), st.sampled_from([1, 1, 1, 2, 9])), min_size=1, max_size=5),
    block_size=st.sampled_from([3, 8, 16]),
    window=st.sampled_from([None, 1, 11]),
    heads=st.sampled_from([(1, 1), (6, 2), (8, 1), (12, 4), (5, 5)]),
    width=st.sampled_from([32, 64, 96, 128, 24]),
    norms=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rotary_embedding_cache_and_attention(
    spans: list[tuple[int, int]],
    block_size: int,
    window: int | None,
    heads: tuple[int, int],
    width: int,
    norms: bool,
    seed: int,
) -> None:
    """NaN in every block that belongs to nobody, and in the padding rows."""
    num_heads, num_kv_heads = heads
    generator = torch.Generator().manual_seed(seed)
    order = sorted(spans, key=lambda span: (span[1] > 1, -span[0]))
    num_blocks = sum(-(-(start + length) // block_size) for start, length in order) + 3
    layout = KvLayout(num_blocks, num_kv_heads, block_size)
    free = torch.randperm(num_blocks, generator=generator).tolist()
    tables = [[free.pop() for _ in range(-(-(start + length) // block_size))] for start, length in order]
    cache = random(2, *layout, width, seed=seed + 1)
    cache[:, free] = math.nan
    placed = [Span(start, length, block_table(table)) for (start, length), table in zip(order, tables, strict=True)]
    plan = native.plan_attention(placed, layout, [window], BF16, HostStage())[window]
    twin = reference.plan_attention(placed, layout, [window], BF16, HostStage())[window]
    tokens = sum(length for _, length in order)
    projected = random(tokens + 2, num_heads + 2 * num_kv_heads, width, seed=seed + 2)
    projected[tokens:] = math.nan
    angles = torch.randn(tokens + 2, 1, width // 2, generator=generator)
    cos, sin = angles.cos().repeat(1, 1, 2).to(BF16), torch.cat((-angles.sin(), angles.sin()), -1).to(BF16)
    norm = QkNorm(random(width, seed=3), random(width, seed=4), 1e-5) if norms else None
    ours, theirs = (cache.clone(), projected.clone()), (cache.clone(), projected.clone())
    native.rotate_and_write_kv(ours[1], cos, sin, norm, ours[0], plan)
    reference.rotate_and_write_kv(theirs[1], cos, sin, norm, theirs[0], twin)
    close(ours[1][:tokens], theirs[1][:tokens])
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-2, atol=4e-2, equal_nan=True)
    queries = theirs[1][:, :num_heads]
    got = native.attention(queries, theirs[0], plan, width**-0.5)[:tokens]
    close(got, reference.attention(queries, theirs[0], twin, width**-0.5)[:tokens])


def test_what_a_query_attends_to_does_not_depend_on_its_company() -> None:
    layout, width = KvLayout(64, 2, 16), 64
    cache, q = random(2, *layout, width), random(3, 6, width, seed=1)
    tables = [block_table(range(44)), block_table(range(44, 57)), block_table([60])]
    spans = [Span(start, 1, table) for start, table in zip((700, 200, 3), tables, strict=True)]
    plan = native.plan_attention(spans, layout, [None], BF16, HostStage())[None]
    together = native.attention(q, cache, plan, 0.125)
    for row, span in enumerate(spans):
        plan = native.plan_attention([span], layout, [None], BF16, HostStage())[None]
        assert torch.equal(native.attention(q[row : row + 1], cache, plan, 0.125)[0], together[row])


@pytest.mark.parametrize(("dtype", "inputs"), [(torch.float32, 64), (BF16, 33)])
def test_other_products_are_left_to_the_twin(dtype: torch.dtype, inputs: int) -> None:
    weight, x = random(16, inputs).to(dtype), random(3, inputs, seed=1).to(dtype)
    assert torch.equal(native.pack_linear(weight, None)(x), reference.pack_linear(weight, None)(x))


def test_float32_is_left_to_the_twin_exactly() -> None:
    x, weight = torch.randn(4, 48), torch.randn(48)
    assert torch.equal(native.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    assert torch.equal(native.silu_and_mul(x), reference.silu_and_mul(x))


@pytest.mark.parametrize("width", [1, 3, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 100.0])
def test_the_most_likely_tokens(width: int, value: float) -> None:
    """A few numbers only, so that there are many of the largest: the first of them is the one."""
    logits = (random(5, width, seed=width) * 2).round()
    logits[1, width // 2] = value
    logits[2] = value
    logits[3, -1] = value
    logits[4].clamp_(max=0)
    draws = [Draw(0.0, 0, 1.0, 0.0, 0, 0, None, {})] * len(logits)
    none = torch.empty(0, dtype=torch.int64)
    got = native.choose_tokens(logits, draws, none)
    assert torch.equal(got, reference.choose_tokens(logits, draws, none))
