"""Norms and the gate: one call each, where torch takes a handful of operations. What is not bfloat16 goes to torch."""

import torch

from capstan_engine.kernels import reference
from capstan_engine.kernels.native.library import required


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x` `[…, M]`, contiguous or not."""
    if x.dtype is not torch.bfloat16:
        return reference.rms_norm(x, weight, eps)
    return _norm(x.contiguous(), None, weight, eps)


def add_rms_norm(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Both `[T, M]` and contiguous; `x` becomes the sum."""
    if x.dtype is not torch.bfloat16:
        return reference.add_rms_norm(x, delta, weight, eps)
    return _norm(x, delta, weight, eps)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """`[T, 2F] -> [T, F]`, contiguous."""
    if x.dtype is not torch.bfloat16:
        return reference.silu_and_mul(x)
    rows, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, width)
    required().capstan_gate(x.data_ptr(), rows, width, out.data_ptr())
    return out


def _norm(x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty_like(x)
    width = x.shape[-1]
    required().capstan_norm(
        x.data_ptr(),
        None if delta is None else delta.data_ptr(),
        weight.data_ptr(),
        x.numel() // width,
        width,
        eps,
        out.data_ptr(),
    )
    return out
