"""Linear layers on CPU through oneDNN's packed weights, which `torch.nn.functional.linear` does not use.

Packing once at load is worth up to 1.7 times in bfloat16 and, where MKL is slow (AMD), 2.5 times in float32 at batch 8.
A packed weight is opaque: nobody can read it back, and a tied embedding exists twice.
"""

from functools import partial

import torch
from torch.nn import functional

from capstan_engine.kernels.protocol import Linear

# A hint for the choice of the packed layout. Measured: the layout chosen for 1 row slows larger batches by up to 1.7
# times, the one for 32 rows costs one row at most a tenth.
_TYPICAL_ROWS = 32


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """`weight` `[N, K]`, `bias` `[N]` or None; float32 or bfloat16, both of one dtype."""
    if not _can_pack(weight):
        return partial(functional.linear, weight=weight, bias=bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def linear(x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = multiply(x, packed, bias, "none", [], "")
        return product

    return linear


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
