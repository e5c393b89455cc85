"""Matrix products are cuBLAS's: for 16-bit weights no kernel of ours would be faster."""

from functools import partial

import torch
from torch.nn import functional

from capstan_engine.kernels.protocol import Linear


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """`weight` `[N, K]` and `bias` `[N]` as they are."""
    return partial(functional.linear, weight=weight, bias=bias)
