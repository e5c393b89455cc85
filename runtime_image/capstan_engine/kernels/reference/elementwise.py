"""RMS norm, rotary embedding and the gated activation."""

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm (Zhang and Sennrich, 2019) over the last dimension; torch reduces in float32."""
    return functional.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add `delta` to `x` in place, then the norm of `x`."""
    return rms_norm(x.add_(delta), weight, eps)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary position embedding (Su et al., 2021) of `x` `[T, heads, D]` in place.

    Dimension i turns with i + D/2. Swapping the halves is a roll by D/2, and the sign that the rotation puts on one of
    them lives in `sin`, so that three operations do it all.
    """
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(swapped, sin)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """`[T, 2F] -> [T, F]`."""
    gate, up = x.chunk(2, -1)
    return functional.silu(gate).mul_(up)
