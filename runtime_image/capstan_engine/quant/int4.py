"""Weights in 4 bits with a scale and a middle value for each group of inputs, rounded while loading.

The output head has 8 bits. The compiled product rounds activations too, to 8 bits in the weights' groups, and so do the
head's; where nothing is compiled, torch's product of the layers takes them as they are.
"""

import torch

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import Kernels, Linear
from capstan_engine.kernels.native import products
from capstan_engine.quant.format import Format
from capstan_engine.quant.int8 import Int8Dynamic
from capstan_engine.quant.plain import Plain
from capstan_engine.quant.rounding import round_groups


class Int4(Plain):
    """Groups of `group_size` inputs: 32, 64 or 128."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size

    @property
    def head(self) -> Format:
        """8 bits: every token's choice hangs on the head's last digits."""
        return Int8Dynamic()

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels) -> Linear:
        """Compiled where it can be; torch's own product falls behind bfloat16 from 8 rows on."""
        num_outputs, num_inputs = weight.shape
        if num_inputs % self._group_size or num_outputs % 16:
            raise ConfigurationError(
                f"quantization: Int4Group{self._group_size} needs linear layers whose inputs are a multiple of "
                f"{self._group_size} and outputs of 16, and one has {num_inputs} and {num_outputs}; "
                f"take a smaller group, or Int8Dynamic"
            )
        codes, scales, middles = round_groups(weight, self._group_size)
        return products.pack_int4(codes, scales, middles, bias) or torch_int4(codes, scales, middles, bias)


def torch_int4(codes: torch.Tensor, scales: torch.Tensor, middles: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The twin of `products.pack_int4`."""
    group_size = codes.shape[1] // len(scales)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    scales_and_middles = torch.stack((scales, middles), -1)

    def linear(x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group_size, scales_and_middles)
        return product if bias is None else product.add_(bias)

    return linear
