"""Weights in int8, one scale for each output, rounded while loading: half the memory of bfloat16.

Weight-only products leave activations what they are, but for a rounding to 16 bits that is finer than bfloat16's own.
Dynamic ones round them to 8 bits as well: the same time for a token, and half of it for a long prompt. Where nothing is
compiled, oneDNN multiplies them. It wants unsigned activations, around 128: with signed ones it falls back to a loop
thousands of times slower.
"""

import torch

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import Kernels, Linear
from capstan_engine.kernels.native import products
from capstan_engine.quant.plain import Plain
from capstan_engine.quant.rounding import round_channels, round_rows

_INPUTS = 32
"""torch's weight-only product reads so many inputs at once, beyond the end of a row that is not a multiple of them."""


class Int8(Plain):
    """Weight-only."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels) -> Linear:
        """Compiled where it can be; torch's own product is slower than that of plain bfloat16 weights."""
        codes, scales = round_channels(weight)
        return products.pack_int8(codes, scales, bias) or torch_int8(codes, scales, bias)


def torch_int8(codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The twin of `products.pack_int8`. Raises `ConfigurationError` for numbers of inputs that torch cannot take."""
    if codes.shape[1] % _INPUTS:
        raise ConfigurationError(
            f"quantization: Int8 needs linear layers whose inputs are a multiple of {_INPUTS}, and one has "
            f"{codes.shape[1]}; take Int8Dynamic"
        )
    rounded_scales = scales.bfloat16()

    def linear(x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x, codes, rounded_scales)
        return product if bias is None else product.add_(bias)

    return linear


class Int8Dynamic(Plain):
    """Weights and activations."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels) -> Linear:
        """Compiled where it can be, with a scale for each 128 of a token's activations; torch's has one for all."""
        codes, scales = round_channels(weight)
        return products.pack_int8_dynamic(codes, scales, bias) or torch_int8_dynamic(codes, scales, bias)


def torch_int8_dynamic(codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The twin of `products.pack_int8_dynamic`. The integers' sum is exact, so a row does not depend on others."""
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise.default

    def linear(x: torch.Tensor) -> torch.Tensor:
        rounded, largest = round_rows(x)
        product: torch.Tensor = multiply(
            rounded, 1 / 127, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        product.mul_(largest)
        return (product if bias is None else product.add_(bias)).to(x.dtype)

    return linear
