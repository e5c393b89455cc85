"""Our matrix product against torch's, and the choice between the two."""

import math

import pytest
import torch
from torch.nn import functional

from capstan_engine.kernels.triton import linear
from capstan_engine.kernels.triton.gemm import gemm
from capstan_engine.kernels.triton.machine import DEVICE, INTERPRETED
from capstan_engine.kernels.triton.tiles import GEMM, MOST_GEMM_ROWS, GemmTile

# The interpreter multiplies bfloat16 wrongly.
HALF = torch.float16 if INTERPRETED else torch.bfloat16
SMALL = GemmTile(rows=16, outputs=16, inputs=16, num_warps=1, num_stages=1)


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 16, 16), (17, 5, 33), (3, 40, 48), (40, 31, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["32 bits", "16 bits"])
def test_products_of_awkward_sizes(
    dtype: torch.dtype, rows: int, outputs: int, inputs: int, biased: bool, generator: torch.Generator
) -> None:
    # Rows apart from each other, as a part of a wider matrix, and NaN between them.
    wide = torch.full((rows, inputs + 3), math.nan).to(dtype)
    wide[:, :inputs] = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if biased else None
    expected = functional.linear(wide[:, :inputs].float(), weight.float(), None if bias is None else bias.float())
    got = gemm(wide.to(DEVICE)[:, :inputs], weight.to(DEVICE), None if bias is None else bias.to(DEVICE), SMALL)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.float().cpu(), expected, rtol=tolerance, atol=tolerance)


def test_ours_is_taken_for_the_rows_that_it_was_measured_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, GemmTile]] = []

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: GemmTile) -> torch.Tensor:
        taken.append((len(x), tile))
        return gemm(x, weight, bias, tile)

    monkeypatch.setattr(linear, "gemm", counted)
    weight = torch.randn(24, 32, device=DEVICE)
    product = linear.product(weight, None, {1: SMALL, 16: SMALL._replace(outputs=32)})
    for rows in (1, 2, 16, 17, MOST_GEMM_ROWS + 1):
        x = torch.randn(rows, 32, device=DEVICE)
        torch.testing.assert_close(product(x), functional.linear(x, weight), rtol=1e-4, atol=1e-4)
    assert [(rows, tile.outputs) for rows, tile in taken] == [(1, 16), (2, 32), (16, 32)]


def test_the_tiles_to_choose_from_are_different() -> None:
    assert len(set(GEMM)) == len(GEMM)
