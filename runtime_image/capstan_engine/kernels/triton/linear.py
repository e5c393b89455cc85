"""Matrix products: cuBLAS's, but where a kernel of ours was measured to be faster for this weight and so few rows.

What was not measured on this very GPU is cuBLAS's.
"""

from collections.abc import Mapping

import torch
from torch.nn import functional

from capstan_engine.kernels.protocol import Linear
from capstan_engine.kernels.triton.gemm import gemm
from capstan_engine.kernels.triton.tiles import MOST_GEMM_ROWS, GemmTile, gemm_rows
from capstan_engine.kernels.triton.tuning import gemm_tiles


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """`weight` `[N, K]` and `bias` `[N]` as they are."""
    return product(weight, bias, gemm_tiles(weight.shape[0], weight.shape[1], weight.element_size()))


def product(weight: torch.Tensor, bias: torch.Tensor | None, tiles: Mapping[int, GemmTile]) -> Linear:
    """`tiles` are those that are faster than cuBLAS, by the number of rows up to which they are."""

    def linear(x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        tile = tiles.get(gemm_rows(num_rows)) if num_rows <= MOST_GEMM_ROWS else None
        return functional.linear(x, weight, bias) if tile is None else gemm(x, weight, bias, tile)

    return linear
