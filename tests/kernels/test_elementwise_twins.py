"""Norms, the gated activation and the way into the cache, in Triton against plain torch."""

import math

import pytest
import torch

from capstan_engine.kernels import QkNorm, reference, triton
from capstan_engine.kernels.triton.machine import DEVICE
from kernels.paged import paged

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.float().cpu(), expected.float(), rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("width", [1, 96, 257])
def test_norms(width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x, delta = (torch.randn(3, width, generator=generator) * 4).to(dtype), torch.randn(3, width).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    close(triton.rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5), reference.rms_norm(x.float(), weight.float(), 1e-5))
    stream = x.clone().to(DEVICE)
    normed = triton.add_rms_norm(stream, delta.to(DEVICE), weight.to(DEVICE), 1e-5)
    close(stream, (x + delta).float())
    close(normed, reference.rms_norm(stream.cpu().float(), weight.float(), 1e-5))


@DTYPES
@pytest.mark.parametrize("width", [1, 100, 1500])
def test_gated_activation(width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = (torch.randn(2, 2 * width, generator=generator) * 3).to(dtype)
    close(triton.silu_and_mul(x.to(DEVICE)), reference.silu_and_mul(x.float()))


@DTYPES
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "width", "block_size"), [(4, 2, 16, 4), (7, 1, 24, 3), (1, 1, 128, 16)]
)
def test_the_way_into_the_cache(
    num_heads: int,
    num_kv_heads: int,
    width: int,
    block_size: int,
    normed: bool,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    case = paged(
        [(6, 1), (0, 4), (3, 2)],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        width=width,
        block_size=block_size,
        dtype=dtype,
        generator=generator,
    )
    num_tokens, num_rows = 7, 10
    heads = torch.randn(num_rows, num_heads + 2 * num_kv_heads, width, generator=generator).to(dtype)
    heads[num_tokens:] = math.nan
    angles = torch.rand(num_rows, 1, width // 2, generator=generator) * 6
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(dtype)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype)
    weights = torch.randn(2, width, generator=generator).to(dtype)

    expected, cache = heads.float(), case.cache.float()
    norm = QkNorm(*weights.float(), eps=1e-5) if normed else None
    plan = case.plan(reference, torch.float32)
    reference.rotate_and_write_kv(expected, cos.float(), sin.float(), norm, cache, plan)

    actual, written = heads.to(DEVICE), case.cache.to(DEVICE)
    norm = QkNorm(*weights.to(DEVICE), eps=1e-5) if normed else None
    plan = case.plan(triton, dtype)
    triton.rotate_and_write_kv(actual, cos.to(DEVICE), sin.to(DEVICE), norm, written, plan)

    close(actual[:num_tokens, :num_heads], expected[:num_tokens, :num_heads])
    # NaN where it was before: nothing is written beside the slots.
    torch.testing.assert_close(
        written.float().cpu(), cache, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True
    )


def test_a_cache_of_8_bit_floats_takes_what_fits_and_cuts_off_the_rest(generator: torch.Generator) -> None:
    case = paged(
        [(2, 1)], num_heads=1, num_kv_heads=1, width=16, block_size=4, dtype=torch.float32, generator=generator
    )
    cache = torch.zeros_like(case.cache).to(torch.float8_e4m3fn).to(DEVICE)
    # Numbers that the cache can hold: the interpreter does not round others as torch and a GPU do.
    heads = (torch.randn(1, 3, 16, generator=generator) * 10).to(torch.float8_e4m3fn).float()
    heads[0, 2, :2] = torch.tensor([1e4, -1e4])
    ones, zeros = torch.ones(1, 1, 16), torch.zeros(1, 1, 16)
    plan = case.plan(triton, torch.float32)
    triton.rotate_and_write_kv(heads.clone().to(DEVICE), ones.to(DEVICE), zeros.to(DEVICE), None, cache, plan)
    [block] = case.spans[0].block_table
    assert torch.equal(cache.cpu().float()[:, block, 0, 2], heads[0, 1:].clamp(-448, 448))
