"""RMS norm, alone and with the residual addition before it, and the gated activation: one pass over memory each.

Everything is computed in float32 and rounded once, when it is stored.
"""

import torch
import triton
import triton.language as tl

from capstan_engine.kernels.triton.tiles import power_of_two

_ACTIVATION_BLOCK = 1024


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x` `[T, M]`, contiguous."""
    return _norm(x, None, weight, eps)


def add_rms_norm(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x` and `delta` `[T, M]`, contiguous; the sum stays in `x`."""
    return _norm(x, delta, weight, eps)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """`[T, 2F] -> [T, F]`, contiguous."""
    num_rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_rows, width, dtype=x.dtype, device=x.device)
    block = min(_ACTIVATION_BLOCK, power_of_two(width))
    silu_and_mul_kernel[(num_rows, triton.cdiv(width, block))](x, out, WIDTH=width, BLOCK=block)
    return out


def _norm(x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    num_rows, width = x.shape
    out = torch.empty_like(x)
    block = power_of_two(width)
    # Eight numbers a thread, up to the most warps of one program.
    num_warps = min(16, max(1, block // 256))
    norm_kernel[(num_rows,)](
        x, delta, weight, out, eps, WIDTH=width, ADDS=delta is not None, BLOCK=block, num_warps=num_warps
    )
    return out


@triton.jit
def norm_kernel(
    x: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid `(T,)`: one row of `WIDTH` numbers, held in registers."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    first = tl.program_id(0).to(tl.int64) * WIDTH
    row = tl.load(x + first + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        # Rounded as the stream is, so that the norm is of what later layers see.
        row = (row + tl.load(delta + first + column, mask=inside, other=0.0).to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + first + column, row, mask=inside)
        row = row.to(tl.float32)
    root = tl.rsqrt(tl.sum(row * row, 0) / WIDTH + eps)
    scaled = row * root * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + first + column, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_and_mul_kernel(x: tl.tensor, out: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Grid `(T, WIDTH / BLOCK)`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(x + row * 2 * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * WIDTH + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)
