"""The product of a few activations and a weight, with the bias in its last step: `x @ Wᵀ + b`.

For decode steps, where the weight's bytes decide: each program reads some whole rows of it once, for all activations.
Tiles of few outputs make enough programs for every processor, so the sum over the inputs need not be cut in parts.
Programs that share a piece of the weight follow each other, so that it is still in the cache.
"""

import torch
import triton
import triton.language as tl

from capstan_engine.kernels.triton.tiles import GemmTile


def gemm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: GemmTile) -> torch.Tensor:
    """`[T, K] -> [T, N]` for `weight` `[N, K]` and `bias` `[N]`; rows of all are contiguous."""
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0]
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(num_rows, tile.rows), triton.cdiv(num_outputs, tile.outputs))
    gemm_kernel[grid](
        x,
        weight,
        bias,
        out,
        num_rows,
        num_outputs,
        x.stride(0),
        INPUTS=num_inputs,
        BIASED=bias is not None,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.outputs,
        BLOCK_K=tile.inputs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


# The number of rows must not make a kernel of its own: each would be compiled in the middle of serving.
@triton.jit(do_not_specialize=["num_rows"])
def gemm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    x_stride: tl.tensor,
    INPUTS: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Grid `(T / BLOCK_M, N / BLOCK_N)`."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    # What lies outside is read from the last row instead, and never stored: no mask in the loop.
    rows = x + tl.minimum(row, num_rows - 1)[:, None].to(tl.int64) * x_stride + inner[None, :]
    weights = weight + tl.minimum(output, num_outputs - 1)[None, :].to(tl.int64) * INPUTS + inner[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, INPUTS, BLOCK_K):
        if INPUTS % BLOCK_K == 0:
            a = tl.load(rows + first)
            b = tl.load(weights + first)
        else:
            inside = inner < INPUTS - first
            a = tl.load(rows + first, mask=inside[None, :], other=0.0)
            b = tl.load(weights + first, mask=inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if BIASED:
        acc += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)[None, :]
    address = out + row[:, None].to(tl.int64) * num_outputs + output[None, :]
    stored = (row < num_rows)[:, None] & (output < num_outputs)[None, :]
    tl.store(address, acc.to(out.dtype.element_ty), mask=stored)
