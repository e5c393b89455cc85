"""bfloat16 weights in 12 bits each, exactly: what coded.cpp describes, made of a weight as it is in a checkpoint."""

from typing import Final, NamedTuple

import torch

from capstan_engine.kernels.native.library import library, required

_BLOCK: Final = 64
_CHUNK: Final = 1024
_NUM_EXPONENTS: Final = 15
"""Beside that of zero."""
_SAMPLED_ROWS: Final = 64
_MOST_RARE: Final = 1 / 1024
"""Of all weights: each rare one is 48 bits more, and a product of its own."""


class Coded(NamedTuple):
    """A weight `[N, K]`, its blocks padded with zeros; the names are those of a product's tensors."""

    weights: torch.Tensor
    """uint8 `[N/64, K/2, 192]`."""
    scales: torch.Tensor
    """int16 `[32]`: the sixteen exponents twice, as they stand in a bfloat16."""
    starts: torch.Tensor
    """int64 `[N/64 · K/1024 + 1]`: where the rare weights of each chunk begin."""
    rare: torch.Tensor
    """int16 `[M, 3]`: input, output and weight."""


def is_worthwhile() -> bool:
    """Whether this processor decodes weights faster than it could read the bytes that are saved."""
    return hasattr(library(), "capstan_encode")


def code(weight: torch.Tensor) -> Coded | None:
    """A contiguous bfloat16 `[N, K]`, K even; None when one in a thousand of its weights or more would be rare, and
    where it is not worthwhile."""
    if not is_worthwhile():
        return None
    functions, (num_outputs, num_inputs) = required(), weight.shape
    lowest = _lowest_exponent(weight)
    num_blocks = -(-num_outputs // _BLOCK)
    starts = torch.empty(num_blocks * -(-num_inputs // _CHUNK) + 1, dtype=torch.int64)
    arguments = weight.data_ptr(), num_outputs, num_inputs, lowest, starts.data_ptr()
    functions.capstan_find_rare(*arguments)
    num_rare = int(starts[-1])
    if num_rare >= weight.numel() * _MOST_RARE:
        return None
    # Zero has the first code: it is what stands for rare weights, and for those beyond the last output.
    exponents = [0, *range(lowest, lowest + _NUM_EXPONENTS)]
    coded = Coded(
        weights=torch.empty(num_blocks, num_inputs // 2, 3 * _BLOCK, dtype=torch.uint8),
        scales=(torch.tensor(exponents * 2) << 7).to(torch.int16),
        starts=starts,
        rare=torch.empty(num_rare, 3, dtype=torch.int16),
    )
    functions.capstan_encode(*arguments, coded.weights.data_ptr(), coded.rare.data_ptr())
    return coded


def _lowest_exponent(weight: torch.Tensor) -> int:
    """Of those fifteen in a row that most weights have, as some evenly chosen outputs tell."""
    some = weight[:: -(-len(weight) // _SAMPLED_ROWS)].contiguous().view(torch.int16)
    counts = (some >> 7 & 0xFF).flatten().bincount(minlength=256)
    return 1 + int(counts[1:].unfold(0, _NUM_EXPONENTS, 1).sum(1).argmax())
